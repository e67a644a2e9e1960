"""The one door through which every report enters, whatever brought it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from collector.core.identity import Contest
from collector.core.status import HostRecord
from collector.ingest.gate import Gate
from collector.ingest.items import Hearsay, Held, Item, Registered, Registration, Submission, Submitted
from collector.ingest.writer import Writer
from collector.ingest.writers import Writers
from fleetpulse.model import Facts, Report


class Door:
    """Admits reports to the writers. Belongs to one event loop, the running one; each loop has its own.

    `limit` is how many reports may be between admission and commit. For `gather` seconds items are held back,
    so that many are committed at once, where nobody is in a hurry.
    """

    def __init__(self, writers: Writers, limit: int, gather: float = 0.0):
        self.gate = Gate(limit)
        self._loop = asyncio.get_running_loop()
        self._gather = gather
        self._writers = writers
        self._outbox: list[tuple[Writer, Submitted]] = []
        writers.answer_in(self._loop, self.gate.leave)

    def register(
        self,
        record: HostRecord,
        epoch: int,
        received_at: int,
        *,
        fingerprint: bytes | None = None,
        open_since: int = 0,
        contest: Contest | None = None,
        is_polled: bool = False,
    ) -> Coroutine[Any, Any, Registered | Held]:
        """Make a host known; where its epoch stands. See `Registration`. Raises StoreError or HelloRefused."""
        done = self._loop.create_future()
        item = Registration(record, epoch, received_at, done, fingerprint, open_since, contest, is_polled)
        return self._pass(record.host_id, item)

    def submit(
        self,
        host: int,
        record: HostRecord,
        epoch: int,
        reports: Sequence[Report],
        received_at: int,
        weight: int = 1,
        *,
        facts: Facts | None = None,
        is_admitted: bool = False,
    ) -> Coroutine[Any, Any, int]:
        """Commit reports of a registered host; its high-water mark after that.

        `weight` is what they take up in queues and batches, at least their number; the gate has counted it
        already if they are admitted.

        Raises StoreError when the collector stops before it could commit, HelloNeeded for a host that
        was removed or renamed, or has said another Hello meanwhile.
        """
        done = self._loop.create_future()
        item = Submission(
            host, record.hostname, record.instance, epoch, reports, facts, received_at, done, weight
        )
        return self._pass(record.host_id, item, is_admitted=is_admitted)

    def tell(
        self, host: int, host_id: str, hostname: str, report: Report, heard_at: int, found_at: int
    ) -> Coroutine[Any, Any, bool]:
        """Have it stored what was found out about a silent host; see `Hearsay`. Raises StoreError."""
        done = self._loop.create_future()
        return self._pass(host_id, Hearsay(host, hostname, report, heard_at, found_at, done))

    async def _pass(self, host_id: str, item: Submitted, *, is_admitted: bool = False) -> Any:
        weight = item.weight
        if not is_admitted and not self.gate.try_enter(weight):
            await self.gate.enter(weight)
        writer = self._writers.of(host_id)
        if not self._outbox:
            # What arrives in one turn of the loop wakes each writer once.
            if self._gather:
                self._loop.call_later(self._gather, self._flush)
            else:
                self._loop.call_soon(self._flush)
        self._outbox.append((writer, item))
        # The writer counts it off, whether or not this stream is still there. But what it has not begun
        # with when the stream ends is taken back: after an outage it would be in the way of the living.
        try:
            return await item.done
        except asyncio.CancelledError:
            if writer.inbox.withdraw(item):
                self.gate.leave(weight)
            raise

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        by_writer: dict[Writer, list[Item]] = {}
        for writer, item in outbox:
            if item.done.cancelled():  # too early to be withdrawn
                self.gate.leave(item.weight)
                continue
            by_writer.setdefault(writer, []).append(item)
        for writer, items in by_writer.items():
            writer.inbox.put(items)
