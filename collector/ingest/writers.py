"""The writer threads of one process, and which host is whose."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence

from collector.core.rules import RuleSet
from collector.ingest.batch import BatchWriter
from collector.ingest.items import Rejudgement
from collector.ingest.writer import Writer
from collector.store.errors import StoreError
from collector.store.store import Store

_REJUDGE_CHUNK = 100


class Writers:
    """A host always goes to the same one, so its reports stay in order and no two write its rows."""

    def __init__(
        self,
        store: Store,
        rules: Callable[[], RuleSet],
        now: Callable[[], int],
        on_outcome: Callable[[StoreError | None], None],
        *,
        number: int,
        batch_reports: int,
        linger: float,
    ):
        self._answered: dict[asyncio.AbstractEventLoop, Callable[[int], None]] = {}
        self._writers = [
            Writer(
                index,
                BatchWriter(store, rules, now),
                on_outcome,
                self._answered,
                batch_reports=batch_reports,
                linger=linger,
            )
            for index in range(number)
        ]

    def start(self) -> None:
        """Start the threads."""
        for writer in self._writers:
            writer.start()

    def answer_in(self, loop: asyncio.AbstractEventLoop, on_answered: Callable[[int], None]) -> None:
        """Take items whose answers are awaited in this loop, where `on_answered(weight)` is called after each."""
        self._answered[loop] = on_answered

    def of(self, host_id: str) -> Writer:
        """The host's."""
        return self._writers[zlib.crc32(host_id.encode()) % len(self._writers)]

    def rejudge(self, hosts: Sequence[tuple[int, str, str]]) -> None:
        """Have stored values judged by the current rules; hosts as (host, host_id, hostname)."""
        by_writer: dict[Writer, list[tuple[int, str]]] = {}
        for host, host_id, hostname in hosts:
            by_writer.setdefault(self.of(host_id), []).append((host, hostname))
        for writer, chosen in by_writer.items():
            chunks = [
                chosen[start : start + _REJUDGE_CHUNK] for start in range(0, len(chosen), _REJUDGE_CHUNK)
            ]
            writer.inbox.put([Rejudgement(chunk) for chunk in chunks])

    def close(self, patience: float) -> bool:
        """Let them commit what is admitted, for at most `patience` seconds; whether they did. Blocks."""
        for writer in self._writers:
            writer.inbox.close()
        drained = self._join(patience)
        for writer in self._writers:
            writer.abandon()
        self._join(1.0)
        return drained

    def _join(self, patience: float) -> bool:
        """Wait at most `patience` seconds for all threads to end; whether they did."""
        deadline = time.monotonic() + patience
        for writer in self._writers:
            writer.join(max(0.0, deadline - time.monotonic()))
        return not any(writer.is_alive() for writer in self._writers)
