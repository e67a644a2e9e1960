"""The fixed-size pool: a bounded wait in front of DBUtils' PooledDB.

PooledDB counts the connections and hands each to one thread at a time. Four of its habits do not
suit a collector, and are switched off here:

- It waits for a free connection without end; `checkout` waits at most `timeout` in front of it, and who came
  first is served first: a writer that never rests must not keep the heartbeat waiting.
- It connects, pings and rolls back under its one lock, so that one slow connect stalls every
  thread. What it pools here is a `Link`, which costs nothing to make and connects in the thread
  that uses it.
- It replaces a lost connection behind the caller's back, and opens the new one before it closes
  the old. `failures` names an exception that nobody raises, so it never does; a `Link` closes first.
- It hands out the connection that was idle for longest, so that all are soon open and in use by turns.
  Here the last one returned goes out first, and no more are open than are needed at once.

What the server counts is not only what is open here: it finds out a little later that a connection is
gone, and one that stands still finds out when it wakes up. So one place is kept for replacing what was
lost: a pool of eight has at most seven connections in use. One thread connects at a time, after a moment
for the server, asks it which of the lost connections it still has, and gives up if those and the open ones
leave no room: a server whose disk hangs keeps a connection for as long as that lasts, and would soon have
none left. Measured with every connection in use, and a server that stood still for longer than a read may
take, or had its connections killed: 4 of 3 and 9 to 11 of 8 without that, never more with it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from dbutils.pooled_db import PooledDB

from collector.store.errors import StoreUnavailable
from collector.store.link import Link
from collector.store.turns import Turns

_MOMENT = 0.05  # seconds that the server gets to notice that a lost connection is gone


class _NeverRaised(Exception):
    """Given to PooledDB as the only failure on which it may reconnect."""


class Server(Protocol):
    """What the pool needs to know of a database."""

    def connect(self) -> Any:
        """A new connection of the driver."""

    def connection_number(self, connection: Any) -> int | None:
        """The number that the server gave it; None where there is no server. Needs no answer from it."""

    def survivors(self, connection: Any, ages: Mapping[int, float]) -> set[int]:
        """Which of our connections the server still has; by number, seconds since each was made."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How the pool has been used. Times in seconds.

    `reconnects` are the connects after a loss, `longest_use` is how long the connection has been out
    that has been so for longest.
    """

    size: int
    in_use: int
    checkouts: int
    waits: int
    wait_time: float
    timeouts: int
    connects: int
    reconnects: int
    longest_use: float


class Pool:
    """At most `size` connections, whatever happens, and never one in two hands.

    Made after any fork: a pool that finds itself in another process refuses to work, because its
    connections belong to the parent, and nothing that is done with it there reaches the server.
    """

    def __init__(self, server: Server, size: int, timeout: float):
        self.size = size
        self._server = server
        self._timeout = timeout
        self._pid = os.getpid()
        # See above; who needs but one connection has no other to lose.
        self._usable = usable = max(1, size - 1)
        self._free = Turns(usable)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._out_since: dict[int, float] = {}  # by thread
        self._checkouts = self._waits = self._timeouts = self._connects = self._reconnects = 0
        self._wait_time = 0.0
        self._made_at: dict[int, float] = {}  # of each connection, by its number; monotonic
        self._lost: dict[int, float] = {}  # those of them that the server may still have
        self._links: list[Link] = []
        self._pool = _LastReturnedFirst(
            _Creator(self._new_link),
            mincached=usable,
            maxcached=usable,
            maxconnections=usable,
            maxshared=0,
            blocking=False,
            ping=0,
            failures=(_NeverRaised,),
        )

        _pools.add(self)

    def _new_link(self) -> Link:
        link = Link(self._counted_connect, self._note_lost)
        self._links.append(link)
        return link

    def disown(self) -> None:
        """In a forked child: leave every connection to the parent."""
        for link in self._links:
            link.disown()

    def _counted_connect(self, again: bool) -> Any:
        if not self._connecting.acquire(timeout=self._timeout):
            raise StoreUnavailable(
                f"database: does not answer: another thread has been connecting for more than {self._timeout:g} s"
            )
        try:
            if again:
                time.sleep(_MOMENT)
            raw = self._server.connect()
            try:
                if self._lost:
                    self._require_room(raw)
            except BaseException:
                with suppress(Exception):
                    raw.close()
                raise
            number = self._server.connection_number(raw)
        finally:
            self._connecting.release()
        with self._lock:
            self._connects += 1
            self._reconnects += again
            if number is not None:
                self._made_at[number] = time.monotonic()
        return raw

    def _note_lost(self, raw: Any) -> None:
        number = self._server.connection_number(raw)
        if number is not None:
            with self._lock:
                self._lost[number] = self._made_at.pop(number, 0.0)

    def _require_room(self, raw: Any) -> None:
        """Raises StoreUnavailable if the server has too many of our lost connections for one more."""
        now = time.monotonic()
        with self._lock:
            ages = {number: now - made_at for number, made_at in self._lost.items()}
        left = self._server.survivors(raw, ages)
        with self._lock:
            for number in ages.keys() - left:
                self._lost.pop(number, None)
        used = sum(link.is_open for link in self._links) + len(left)
        if used >= self._usable:
            raise StoreUnavailable(
                f"database: still has {len(left)} connections that did not answer and were given up;"
                f" with the others the pool of {self.size} is full"
            )

    @contextmanager
    def checkout(self) -> Iterator[Link]:
        """A link for this thread alone.

        Raises StoreUnavailable when none gets free in time, RuntimeError when the thread has one
        already: threads that wait for their second would wait for each other.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("a connection pool cannot be used in a forked process; make a new one there")
        me = threading.get_ident()
        if me in self._out_since:
            raise RuntimeError("this thread holds a connection of the pool already, and may have only one")
        if not self._free.acquire():
            self._wait()
        try:
            pooled = self._pool.dedicated_connection()
            with self._lock:
                self._checkouts += 1
                self._out_since[me] = time.monotonic()
            try:
                yield pooled.dbapi_connection
            finally:
                with self._lock:
                    del self._out_since[me]
                pooled.close()
        finally:
            self._free.release()

    def _wait(self) -> None:
        began = time.monotonic()
        got = self._free.acquire(self._timeout)
        with self._lock:
            self._waits += 1
            self._wait_time += time.monotonic() - began
            self._timeouts += not got
        if not got:
            raise StoreUnavailable(
                f"no database connection got free within {self._timeout:g} s (pool of {self.size})"
            )

    @property
    def stats(self) -> PoolStats:
        """Use since the pool was made."""
        now = time.monotonic()
        with self._lock:
            return PoolStats(
                size=self.size,
                in_use=len(self._out_since),
                checkouts=self._checkouts,
                waits=self._waits,
                wait_time=self._wait_time,
                timeouts=self._timeouts,
                connects=self._connects,
                reconnects=self._reconnects,
                longest_use=now - min(self._out_since.values(), default=now),
            )

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.close()


class _LastReturnedFirst(PooledDB):  # type: ignore[misc]  # it has no types
    """PooledDB takes from the front of its idle connections; so that is where they are put back."""

    def cache(self, con: Any) -> None:
        with self._lock:  # can be taken twice by one thread
            super().cache(con)
            self._idle_cache.insert(0, self._idle_cache.pop())


class _Creator:
    """What PooledDB expects of a database module."""

    threadsafety = 1

    def __init__(self, new_link: Callable[[], Link]):
        self._new_link = new_link

    def connect(self) -> Link:
        return self._new_link()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _disown_all() -> None:
    for pool in _pools:
        pool.disown()


os.register_at_fork(after_in_child=_disown_all)
