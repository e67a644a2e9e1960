"""The streams that are open now: one per host, the newest counts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from collector.core.status import HostRecord
from fleetpulse.model import Layout

_RECONNECTS_PER_SECOND = 200
_RECONNECT_LEAST = 2.0  # seconds over which reconnects are spread at least


@dataclass(slots=True, eq=False)
class Session:
    """One stream after its Hello. `host` is the host's number in the database."""

    record: HostRecord
    epoch: int
    host: int
    send_goodbye: Callable[[int], Awaitable[None]]
    task: asyncio.Task[object]
    layouts: dict[bytes, Layout] = field(default_factory=dict)
    is_idle: bool = False
    """Waiting for the agent, so that somebody else may write to the stream."""
    goodbye: int | None = None
    """Milliseconds after which the agent is to come back, once it has been asked to leave."""
    was_replaced: bool = False


class Sessions:
    """The open streams by host. Used on one event loop only."""

    def __init__(self) -> None:
        self._by_host: dict[str, Session] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.are_closing = False

    def __len__(self) -> int:
        return len(self._by_host)

    def join(self, session: Session) -> None:
        """Make this the host's stream. An older one is ended: its peer is gone, or a double."""
        older = self._by_host.get(session.record.host_id)
        if older is not None:
            older.was_replaced = True
            older.task.cancel()
        self._by_host[session.record.host_id] = session
        self._empty.clear()

    def leave(self, session: Session) -> None:
        """The stream has ended."""
        if self._by_host.get(session.record.host_id) is session:
            del self._by_host[session.record.host_id]
        if not self._by_host:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no stream is open."""
        await self._empty.wait()

    async def say_goodbye(self) -> None:
        """Ask every agent to leave, and to come back at a time of its own.

        A stream in the middle of a batch says goodbye itself, after its ack.
        """
        self.are_closing = True
        sessions = list(self._by_host.values())
        spread = max(_RECONNECT_LEAST, len(sessions) / _RECONNECTS_PER_SECOND)
        for session in sessions:
            session.goodbye = int(random.uniform(0.5, 0.5 + spread) * 1000)  # noqa: S311 - spreads load
        await asyncio.gather(
            *[session.send_goodbye(session.goodbye or 0) for session in sessions if session.is_idle],
            return_exceptions=True,  # a stream may end at this very moment
        )
