"""The spool's interface without a disk: for simulations, and for a machine that has no writable disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from agent.backlog import Limits, Row, Waiting, random_epoch
from fleetpulse import convert
from fleetpulse.model import CheckResult, Layout, Report


class MemorySpool:
    """A bounded queue in memory; its reports die with the process. `clock` yields monotonic seconds."""

    def __init__(
        self,
        limits: Limits | None = None,
        epoch: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sent_seq = 0
        self.is_contact_noted = True
        self.last_layout: Layout | None = None
        """As in DiskSpool."""
        self._limits = limits or Limits()
        self._clock = clock
        self._epoch = epoch or random_epoch()
        self._last_seq = 0
        self._lost = 0
        self._size = 0
        self._lock = threading.Lock()  # reports are appended by a thread of their own
        self._rows: deque[Row] = deque()
        self._layouts: dict[bytes, bytes] = {}

    @property
    def epoch(self) -> int:
        """As in Spool."""
        return self._epoch

    @property
    def last_seq(self) -> int:
        """As in Spool."""
        return self._last_seq

    def note_contact(self) -> None:
        """As in Spool."""

    def append(
        self, measured_at: int, layout: Layout, values: tuple[float, ...], results: tuple[CheckResult, ...]
    ) -> int:
        """As in DiskSpool."""
        with self._lock:
            if layout.id not in self._layouts:
                data = convert.layout_to_wire_bytes(layout)
                convert.layout_from_wire_bytes(data)
                used = {row.layout_id for row in self._rows}
                self._layouts = {key: kept for key, kept in self._layouts.items() if key in used}
                self._layouts[layout.id] = data
            kept_at = int(self._clock() * 1000)
            oldest = kept_at - self._limits.max_age
            while self._rows and (self._rows[0].kept_at < oldest or self._size > self._limits.max_size):
                self._lost += 1 + self._take_oldest().dropped
            self._last_seq += 1
            row = Row.of(Report(self._last_seq, measured_at, layout, values, results, self._lost), kept_at)
            self._lost = 0
            self._rows.append(row)
            self._size += len(row.payload)
            return row.seq

    def peek(self, max_reports: int, max_bytes: int, known: Collection[bytes] = ()) -> Waiting:
        """As in Spool."""
        with self._lock:
            reports: list[bytes] = []
            layouts: dict[bytes, bytes] = {}
            size = first_seq = last_seq = 0
            for row in self._rows:
                size += len(row.payload)
                if reports and (len(reports) >= max_reports or size > max_bytes):
                    break
                reports.append(row.payload)
                first_seq, last_seq = first_seq or row.seq, row.seq
                if row.layout_id not in known:
                    layouts[row.layout_id] = self._layouts[row.layout_id]
            return Waiting(tuple(reports), layouts, last_seq, first_seq)

    def ack(self, seq: int) -> None:
        """As in Spool."""
        with self._lock:
            while self._rows and self._rows[0].seq <= seq:
                self._take_oldest()

    def discard(self, seq: int) -> None:
        """As in Spool."""
        with self._lock:
            for row in self._rows:
                if row.seq == seq:
                    self._rows.remove(row)
                    self._size -= len(row.payload)
                    self._lost += 1 + row.dropped
                    return

    def pending(self) -> int:
        """As in Spool."""
        return len(self._rows)

    def new_epoch(self) -> None:
        """As in Spool."""
        self._epoch = random_epoch()

    def close(self) -> None:
        """As in DiskSpool."""

    def _take_oldest(self) -> Row:
        row = self._rows.popleft()
        self._size -= len(row.payload)
        return row
