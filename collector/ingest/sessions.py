"""The streams that are open now: one per host, the newest counts."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from collector.core.status import HostRecord
from fleetpulse import convert
from fleetpulse.convert import StreamResponse
from fleetpulse.model import Layout

_RECONNECTS_PER_SECOND = 200
_RECONNECT_LEAST = 2.0  # seconds over which reconnects are spread at least
_LAST_WRITE_PATIENCE = 5.0  # seconds that a stream we end may go on writing
_UNTRUSTED_PATIENCE = 1.0  # seconds, for one whose certificate is no longer good
_GOODBYE_PATIENCE = 2.0  # seconds that agents have to take it from us


@dataclass(slots=True, eq=False)
class Session:
    """One stream after its Hello. `host` is the host's number in the database."""

    record: HostRecord
    epoch: int
    host: int
    write: Callable[[StreamResponse], Awaitable[None]]
    """For `send` alone: gRPC takes one message at a time."""
    task: asyncio.Task[object]
    opened_at: int = 0
    """When its Hello was taken, in milliseconds by the collector's clock."""
    fingerprint: bytes = b""
    """That of the certificate with which it speaks, and of the CA that signed it; empty without TLS."""
    issuer: bytes = b""
    trust_id: bytes = b""
    """Which CAs its agent trusts: the SHA-256 of their bundle."""
    expires: float = math.inf
    """When the certificate does, by the monotonic clock."""
    layouts: dict[bytes, Layout] = field(default_factory=dict)
    layouts_size: int = 0
    """What they take up, in bytes."""
    report_cost: float = 1.0
    """How much of the host's pace one report takes up."""
    is_idle: bool = False
    """Nothing that the agent sent waits for an answer, so that it may be told to leave."""
    held_since: float = 0.0
    """Since when, by the monotonic clock, the agent waits for us; 0: it does not."""
    writing_since: float = 0.0
    """Since when a message waits for the agent to read; 0: none does."""
    goodbye: int | None = None
    """Milliseconds after which the agent is to come back, once it has been asked to leave."""
    ended: str = ""
    """Why we ended the stream, if we did: a name in `COUNTED`."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _aside: set[asyncio.Task[None]] = field(default_factory=set)
    _last_call: asyncio.TimerHandle | None = None
    is_over: bool = False
    """The stream has ended."""

    @property
    def is_writing(self) -> bool:
        """Whether a message is on its way, or waits for its turn."""
        return self._turn.locked() or bool(self._aside)

    async def send(self, message: StreamResponse) -> None:
        """Write one message, after whatever is being written. Waits while the agent does not read."""
        turn = self._turn
        await turn.acquire()  # `async with` would cost two coroutines more for each acknowledgement
        try:
            self.writing_since = time.monotonic()
            await self.write(message)
            self.writing_since = 0.0
        finally:
            turn.release()
        if self.ended:
            self.task.cancel()

    def send_aside(self, message: StreamResponse) -> asyncio.Task[None]:
        """Send while the stream's handler does something else. The task never fails."""
        task = asyncio.create_task(self._send_quietly(message))
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        return task

    def end(self, why: str) -> None:
        """Have the stream's handler end it: at once, or after what is being written, if that goes quickly.

        A write that is broken off leaves gRPC unable to tell the agent why.
        """
        if self.ended:
            return
        self.ended = why
        if self.writing_since:
            patience = _UNTRUSTED_PATIENCE if why in ("revoked", "expired") else _LAST_WRITE_PATIENCE
            waited = time.monotonic() - self.writing_since
            self._last_call = self.task.get_loop().call_later(max(0.0, patience - waited), self.task.cancel)
        else:
            self.task.cancel()

    def close(self) -> None:
        """The stream has ended: nothing is to be written any more."""
        self.is_over = True
        for task in self._aside:
            task.cancel()
        if self._last_call is not None:
            self._last_call.cancel()
        # A stream that ends by an error is garbage in a cycle, which may wait long for its collection.
        self.layouts.clear()

    async def _send_quietly(self, message: StreamResponse) -> None:
        with suppress(Exception):  # the stream may end at this very moment, and its handler tells why
            await self.send(message)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. How long a stream is left alone."""

    look: float = 1.0  # between two looks at all streams
    held: float = 5.0  # an agent waits for us before it is told to wait longer
    unread: float = 60.0  # we wait for an agent to read


class Sessions:
    """The open streams by host. Used on one event loop only. `counts` is where it counts."""

    def __init__(self, counts: Counter[str] | None = None, patience: Patience | None = None) -> None:
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._patience = patience or Patience()
        self._by_host: dict[str, Session] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.are_closing = False

    def __len__(self) -> int:
        return len(self._by_host)

    def all(self) -> list[Session]:
        """Every open stream's, as of now."""
        return list(self._by_host.values())

    def of(self, host_id: str) -> Session | None:
        """The host's, if it has one here."""
        return self._by_host.get(host_id)

    def end_certificates(self, fingerprints: Collection[bytes]) -> None:
        """End the streams that speak with one of these certificates, which were revoked."""
        for session in self.all():
            if session.fingerprint in fingerprints:
                session.end("revoked")

    def join(self, session: Session) -> None:
        """Make this the host's stream. An older one is ended: its peer is gone, or a double."""
        older = self._by_host.get(session.record.host_id)
        if older is not None:
            older.end("replaced")
        self._by_host[session.record.host_id] = session
        self._empty.clear()

    def leave(self, session: Session) -> None:
        """The stream has ended."""
        session.close()
        if self._by_host.get(session.record.host_id) is session:
            del self._by_host[session.record.host_id]
        if not self._by_host:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no stream is open."""
        await self._empty.wait()

    async def watch(self) -> NoReturn:
        """Keep agents waiting that wait for us; end streams that are not read or whose certificate expires; for ever."""
        while True:
            await asyncio.sleep(self._patience.look)
            now = time.monotonic()
            for session in self.all():
                self._look_at(session, now)

    def _look_at(self, session: Session, now: float) -> None:
        patience = self._patience
        if session.writing_since and now - session.writing_since > patience.unread:
            session.end("unread")
        elif now >= session.expires:
            session.end("expired")
        elif session.held_since and now - session.held_since > patience.held and not session.is_writing:
            # An agent gives a stream up on which nothing is acked, unless it is told to go on waiting.
            # The pauses differ, so that not all come at once when the database is back.
            pause = int(random.uniform(1.0, 1.5) * patience.held * 1000)  # noqa: S311 - spreads load
            session.send_aside(convert.encode_throttle(pause))
            session.held_since = now
            self.counts["held"] += 1

    async def say_goodbye(self) -> None:
        """Ask every agent to leave, and to come back at a time of its own.

        A stream in the middle of a batch says goodbye itself, after its ack. Who does not read is not
        waited for.
        """
        self.are_closing = True
        sessions = self.all()
        spread = max(_RECONNECT_LEAST, len(sessions) / _RECONNECTS_PER_SECOND)
        for session in sessions:
            # Early enough for the next collector, which calls who does not come in time silent.
            latest = 0.5 + min(spread, session.record.ttl / 2000)
            session.goodbye = int(random.uniform(0.5, latest) * 1000)  # noqa: S311 - spreads load
        sends = [
            session.send_aside(convert.encode_goodbye(session.goodbye or 0))
            for session in sessions
            if session.is_idle
        ]
        if sends:
            await asyncio.wait(sends, timeout=_GOODBYE_PATIENCE)
