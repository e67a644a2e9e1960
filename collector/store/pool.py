"""The fixed-size pool: a bounded wait in front of DBUtils' PooledDB.

PooledDB counts the connections and hands each to one thread at a time. Three of its habits do not
suit a collector, and are switched off here:

- It waits for a free connection without end; `checkout` waits at most `timeout` in front of it.
- It connects, pings and rolls back under its one lock, so that one slow connect stalls every
  thread. What it pools here is a `Link`, which costs nothing to make and connects in the thread
  that uses it.
- It replaces a lost connection behind the caller's back, and opens the new one before it closes
  the old. `failures` names an exception that nobody raises, so it never does; a `Link` closes first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from dbutils.pooled_db import PooledDB

from collector.store.errors import StoreUnavailable


class _NeverRaised(Exception):
    """Given to PooledDB as the only failure on which it may reconnect."""


class Link:
    """One place in the pool, with at most one live connection behind it.

    Looks like a DB-API connection to PooledDB. Not shared between threads: the pool sees to that.
    """

    def __init__(self, connect: Callable[[], Any]):
        self._connect = connect
        self._raw: Any = None

    def open(self) -> Any:
        """The driver's connection, made now if there is none. Raises the driver's errors."""
        if self._raw is None:
            self._raw = self._connect()
        return self._raw

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that has not been discarded."""
        return self._raw is not None

    def discard(self) -> None:
        """Close the connection, because it is lost or its state is unknown."""
        raw, self._raw = self._raw, None
        if raw is not None:
            with suppress(Exception):  # a lost connection may fail to close in any way
                raw.close()

    close = discard

    def cursor(self) -> Any:
        """A cursor of the driver's connection."""
        return self.open().cursor()

    def commit(self) -> None:
        """Called by nobody: transactions end in `Store.transaction`."""

    def rollback(self) -> None:
        """Called by PooledDB under its lock when the link is returned; the transaction ended before."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """How the pool has been used. Times in seconds."""

    size: int
    in_use: int
    checkouts: int
    waits: int
    wait_time: float
    timeouts: int
    connects: int


class Pool:
    """At most `size` connections, whatever happens, and never one in two hands.

    Made after any fork: a pool that finds itself in another process refuses to work, because its
    connections belong to the parent.
    """

    def __init__(self, connect: Callable[[], Any], size: int, timeout: float):
        self.size = size
        self._timeout = timeout
        self._pid = os.getpid()
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._in_use = self._checkouts = self._waits = self._timeouts = self._connects = 0
        self._wait_time = 0.0
        self._connect = connect
        self._pool = PooledDB(
            _Creator(self._new_link),
            mincached=size,
            maxcached=size,
            maxconnections=size,
            maxshared=0,
            blocking=False,
            ping=0,
            failures=(_NeverRaised,),
        )

    def _new_link(self) -> Link:
        return Link(self._counted_connect)

    def _counted_connect(self) -> Any:
        raw = self._connect()
        with self._lock:
            self._connects += 1
        return raw

    @contextmanager
    def checkout(self) -> Iterator[Link]:
        """A link for this thread alone. Raises StoreUnavailable when none gets free in time."""
        if os.getpid() != self._pid:
            raise RuntimeError("a connection pool cannot be used in a forked process; make a new one there")
        if not self._free.acquire(blocking=False):
            self._wait()
        try:
            pooled = self._pool.dedicated_connection()
            with self._lock:
                self._checkouts += 1
                self._in_use += 1
            try:
                yield pooled.dbapi_connection
            finally:
                with self._lock:
                    self._in_use -= 1
                pooled.close()
        finally:
            self._free.release()

    def _wait(self) -> None:
        began = time.monotonic()
        got = self._free.acquire(timeout=self._timeout)
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
        with self._lock:
            return PoolStats(
                self.size,
                self._in_use,
                self._checkouts,
                self._waits,
                self._wait_time,
                self._timeouts,
                self._connects,
            )

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.close()


class _Creator:
    """What PooledDB expects of a database module."""

    threadsafety = 1

    def __init__(self, new_link: Callable[[], Link]):
        self._new_link = new_link

    def connect(self) -> Link:
        return self._new_link()
