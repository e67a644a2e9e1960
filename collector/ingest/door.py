"""The one door through which every report enters, whatever brought it."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from collector.core.identity import Contest
from collector.core.rules import RuleSet
from collector.core.status import HostRecord
from collector.ingest.batch import BatchWriter
from collector.ingest.gate import Gate
from collector.ingest.items import Held, Item, Registered, Registration, Rejudgement, Submission
from collector.ingest.writer import Writer
from collector.store.errors import StoreError
from collector.store.store import Store
from fleetpulse.model import Facts, Report

_REJUDGE_CHUNK = 100


class Door:
    """Admits reports to the writers. All methods but `rejudge` belong to one event loop."""

    def __init__(
        self,
        store: Store,
        rules: Callable[[], RuleSet],
        now: Callable[[], int],
        on_outcome: Callable[[StoreError | None], None],
        *,
        writers: int,
        batch_reports: int,
        linger: float,
        queue_reports: int,
    ):
        self.gate = Gate(queue_reports)
        self._loop = asyncio.get_running_loop()
        self._writers = [
            Writer(
                number,
                BatchWriter(store, rules, now),
                on_outcome,
                self.gate.leave,
                batch_reports=batch_reports,
                linger=linger,
            )
            for number in range(writers)
        ]
        self._outbox: list[tuple[Writer, Registration | Submission]] = []

    def start(self) -> None:
        """Start the writer threads."""
        for writer in self._writers:
            writer.start()

    async def register(
        self,
        record: HostRecord,
        epoch: int,
        received_at: int,
        *,
        fingerprint: bytes | None = None,
        open_since: int = 0,
        contest: Contest | None = None,
    ) -> Registered | Held:
        """Make a host known; where its epoch stands. See `Registration`. Raises StoreError or HelloRefused."""
        done = self._loop.create_future()
        item = Registration(record, epoch, received_at, done, fingerprint, open_since, contest)
        answer: Registered | Held = await self._pass(record.host_id, item)
        return answer

    async def submit(
        self,
        host: int,
        record: HostRecord,
        epoch: int,
        reports: Sequence[Report],
        received_at: int,
        facts: Facts | None = None,
        cost: int = 1,
    ) -> int:
        """Commit reports of a registered host; its high-water mark after that.

        `cost` is what they take up in queues and batches if that is more than their number.

        Raises StoreError when the collector stops before it could commit, HelloNeeded for a host that
        was removed or renamed, or has said another Hello meanwhile.
        """
        done = self._loop.create_future()
        item = Submission(
            host, record.hostname, record.instance, epoch, reports, facts, received_at, done, cost
        )
        committed: int = await self._pass(record.host_id, item)
        return committed

    def rejudge(self, hosts: Sequence[tuple[int, str, str]]) -> None:
        """Have stored values judged by the current rules; hosts as (host, host_id, hostname)."""
        by_writer: dict[Writer, list[tuple[int, str]]] = {}
        for host, host_id, hostname in hosts:
            by_writer.setdefault(self._writer_of(host_id), []).append((host, hostname))
        for writer, chosen in by_writer.items():
            chunks = [
                chosen[start : start + _REJUDGE_CHUNK] for start in range(0, len(chosen), _REJUDGE_CHUNK)
            ]
            writer.inbox.put([Rejudgement(chunk) for chunk in chunks])

    async def close(self, patience: float) -> bool:
        """Let the writers commit what is admitted, for at most `patience` seconds; whether they did."""
        for writer in self._writers:
            writer.inbox.close()
        drained = await asyncio.to_thread(self._join, patience)
        for writer in self._writers:
            writer.abandon()
        await asyncio.to_thread(self._join, 1.0)
        return drained

    def _join(self, patience: float) -> bool:
        """Wait at most `patience` seconds for all writers to end; whether they did."""
        deadline = time.monotonic() + patience
        for writer in self._writers:
            writer.join(max(0.0, deadline - time.monotonic()))
        return not any(writer.is_alive() for writer in self._writers)

    def _writer_of(self, host_id: str) -> Writer:
        return self._writers[zlib.crc32(host_id.encode()) % len(self._writers)]

    async def _pass(self, host_id: str, item: Registration | Submission) -> Any:
        weight = item.weight
        if not self.gate.try_enter(weight):
            await self.gate.enter(weight)
        writer = self._writer_of(host_id)
        if not self._outbox:
            # What arrives in one turn of the loop wakes each writer once.
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
