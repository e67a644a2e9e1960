"""The agent's bounded queue on disk of what is not acked yet.

SQLite in WAL mode with `synchronous=FULL`: a report that `append` returned survives kill -9 and power
loss. A steady state costs one commit a report, because what has been acked since is deleted in the
same transaction. `append` belongs to the measuring thread and the rest to the event loop, which reads
through a connection of its own, so that a slow fsync never blocks it.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from agent import spool_file
from agent.spool_file import SpoolCorruptError, SpoolError
from fleetpulse import convert
from fleetpulse.model import CheckResult, Layout, Report

log = logging.getLogger(__name__)

_MAX_UNSAVED = 1_000  # reports held in memory while the disk takes none: four hours at 15 s


@dataclass(frozen=True, slots=True)
class Limits:
    """What the spool may hold before it drops the oldest: milliseconds, and bytes of payload."""

    max_age: int = 24 * 3_600_000
    max_size: int = 64 << 20


class Waiting(NamedTuple):
    """The oldest reports that are not acked, in the form in which they travel.

    `layouts` holds those that the reports refer to and the reader does not know yet.
    """

    reports: tuple[bytes, ...] = ()
    layouts: Mapping[bytes, bytes] = {}
    last_seq: int = 0


class Row(NamedTuple):
    """A report in the queue. `measured_at` in milliseconds, `dropped` as its payload says it."""

    seq: int
    measured_at: int
    layout_id: bytes
    payload: bytes
    dropped: int

    @classmethod
    def of(cls, report: Report) -> Row:
        """The row that keeps `report`."""
        payload = convert.encode_report(report)
        return cls(report.seq, report.measured_at, report.layout.id, payload, report.dropped)


class Spool(Protocol):
    """What delivery needs of a queue. Numbers only go up, also across epochs."""

    @property
    def epoch(self) -> int:
        """New each time the queue lost its memory; 1 to 2^63-1."""

    @property
    def last_seq(self) -> int:
        """The number of the newest report; 0 before the first."""

    def peek(self, max_reports: int, max_bytes: int, known: Collection[bytes] = ()) -> Waiting:
        """The oldest reports within both bounds, but at least one if any waits."""

    def ack(self, seq: int) -> None:
        """Everything up to `seq` is committed elsewhere and may be forgotten."""

    def discard(self, seq: int) -> None:
        """Drop one report that nobody takes; it is counted as dropped."""

    def pending(self) -> int:
        """How many reports wait."""

    def new_epoch(self) -> None:
        """Start a new epoch; what waits is kept and belongs to it."""


def random_epoch() -> int:
    """A number that no earlier spool of this host had, as good as surely."""
    return secrets.randbelow(2**63 - 1) + 1


class DiskSpool:
    """The spool in a file. Raises SpoolError if the file can be neither used nor replaced."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self._path = path
        self._limits = limits or Limits()
        self._lock = threading.Lock()  # for the writing connection and the counts; reading needs none
        self._acked = 0
        self._last_seq = 0
        # Reports that the disk did not take (full, failing). They are sent all the same: a machine
        # whose disk is full is one that the admins want to hear from.
        self._unsaved: deque[Row] = deque()
        self._encoded: dict[bytes, bytes] = {}  # the layouts of the newest and of unsaved reports
        self._failing = False
        try:
            self._load()
        except SpoolCorruptError as error:
            self._replace(error)

    @property
    def epoch(self) -> int:
        """As in Spool."""
        return self._epoch

    @property
    def last_seq(self) -> int:
        """As in Spool."""
        return self._last_seq

    def append(
        self, measured_at: int, layout: Layout, values: tuple[float, ...], results: tuple[CheckResult, ...]
    ) -> int:
        """Keep one report, drop the oldest that no longer fit, and return its number.

        Raises WireError for a layout that no collector would take.
        """
        with self._lock:
            if layout.id not in self._encoded:
                data = convert.layout_to_wire_bytes(layout)
                convert.layout_from_wire_bytes(data)
                self._encoded[layout.id] = data
            # Before the commit: the reading thread may see, send and ack the report right after it.
            self._last_seq += 1
            report = Report(self._last_seq, measured_at, layout, values, results)
            try:
                try:
                    self._save(report)
                except SpoolCorruptError as error:
                    self._replace(error)
                    self._save(report)
            except SpoolError as error:
                self._keep_in_memory(report, error)
            return report.seq

    def peek(self, max_reports: int, max_bytes: int, known: Collection[bytes] = ()) -> Waiting:
        """As in Spool. Raises SpoolError while the disk cannot be read."""
        # Taken before the file is read: a row that moves there meanwhile is found there.
        unsaved = tuple(self._unsaved)
        layouts = dict(self._encoded) if unsaved else {}
        try:
            with spool_file.errors(self._path):
                rows, on_disk = self._read(max_reports, max_bytes, known)
        except SpoolCorruptError as error:
            with self._lock:
                self._replace(error)
            return Waiting()
        size = sum(len(payload) for _, _, payload in rows)
        last_on_disk = rows[-1][0] if rows else 0
        for row in unsaved:
            size += len(row.payload)
            if row.seq <= max(last_on_disk, self._acked):
                continue
            if rows and (len(rows) >= max_reports or size > max_bytes):
                break
            rows.append((row.seq, row.layout_id, row.payload))
        needed = {layout_id for _, layout_id, _ in rows if layout_id not in known}
        return Waiting(
            tuple(payload for _, _, payload in rows),
            {layout_id: on_disk.get(layout_id) or layouts[layout_id] for layout_id in needed},
            rows[-1][0] if rows else 0,
        )

    def _read(
        self, max_reports: int, max_bytes: int, known: Collection[bytes]
    ) -> tuple[list[tuple[int, bytes, bytes]], dict[bytes, bytes]]:
        """(seq, layout id, payload) of the oldest reports in the file, and the layouts of those."""
        rows: list[tuple[int, bytes, bytes]] = []
        size = 0
        self._reader.execute("BEGIN")  # one snapshot: a report's layout must not vanish in between
        try:
            for row in self._reader.execute(
                "SELECT seq, layout_id, payload FROM report WHERE seq > ? ORDER BY seq LIMIT ?",
                (self._acked, max_reports),
            ):
                size += len(row[2])
                if rows and size > max_bytes:
                    break
                rows.append(row)
            layouts = {}
            for layout_id in {row[1] for row in rows}.difference(known):
                found = self._reader.execute(
                    "SELECT payload FROM layout WHERE id = ?", (layout_id,)
                ).fetchone()
                if found is None:
                    raise SpoolCorruptError(f"spool {self._path} lacks a layout that a report refers to")
                layouts[layout_id] = found[0]
        finally:
            self._reader.execute("COMMIT")
        return rows, layouts

    def ack(self, seq: int) -> None:
        """As in Spool. Costs nothing now: the next `append` deletes."""
        self._acked = max(self._acked, min(seq, self._last_seq))

    def discard(self, seq: int) -> None:
        """As in Spool. Raises SpoolError while the disk takes no writes."""
        with self._lock:
            for row in tuple(self._unsaved):
                if row.seq == seq:
                    self._unsaved.remove(row)
                    self._lost += 1 + row.dropped
                    return
            with self._transaction():
                size, lost, _ = self._delete("seq = ?", seq)
                self._writer.execute("UPDATE meta SET lost = lost + ?", (lost,))
            self._size -= size
            self._lost += lost

    def pending(self) -> int:
        """As in Spool. Raises SpoolError while the disk cannot be read."""
        unsaved = sum(row.seq > self._acked for row in tuple(self._unsaved))
        with spool_file.errors(self._path):
            count = self._reader.execute("SELECT count(*) FROM report WHERE seq > ?", (self._acked,))
            return int(count.fetchone()[0]) + unsaved

    def new_epoch(self) -> None:
        """As in Spool. Raises SpoolError while the disk takes no writes."""
        with self._lock:
            epoch = random_epoch()
            with self._transaction():
                self._writer.execute("UPDATE meta SET epoch = ?", (epoch,))
            self._epoch = epoch

    def close(self) -> None:
        """Forget what was acked and close the file."""
        with self._lock:
            try:
                with self._transaction():
                    self._delete("seq <= ?", self._acked)
            except SpoolError as error:
                log.warning("%s", error)
            self._writer.close()
            self._reader.close()

    def _load(self) -> None:
        self._writer, self._reader = spool_file.connect(self._path, random_epoch())
        with spool_file.errors(self._path):
            self._epoch, self._lost = self._writer.execute("SELECT epoch, lost FROM meta").fetchone()
            newest = self._writer.execute("SELECT seq FROM sqlite_sequence WHERE name = 'report'").fetchone()
            # A replaced file goes on counting: its first number must not look like an old one.
            self._last_seq = max(self._last_seq, newest[0] if newest else 0)
            total = self._writer.execute("SELECT coalesce(sum(length(payload)), 0) FROM report")
            self._size: int = total.fetchone()[0]

    def _replace(self, error: SpoolCorruptError) -> None:
        for connection in (getattr(self, "_reader", None), getattr(self, "_writer", None)):
            if connection is not None:
                connection.close()
        aside = spool_file.set_aside(self._path)
        log.error("%s; set aside as %s, what waited in it cannot be delivered", error, aside.name)
        self._load()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with spool_file.errors(self._path), spool_file.transaction(self._writer):
            yield

    def _save(self, report: Report) -> None:
        """One transaction: forget what is acked, make room, write what is not on disk yet."""
        rows = [row for row in self._unsaved if row.seq > self._acked]
        with self._transaction():
            size, _, freed_layouts = self._delete("seq <= ?", self._acked)
            size = self._size - size + sum(len(row.payload) for row in rows)
            size, lost = self._make_room(size, report.measured_at - self._limits.max_age, freed_layouts)
            rows.append(Row.of(report._replace(dropped=self._lost + lost)))
            size += len(rows[-1].payload)
            self._writer.executemany("INSERT OR IGNORE INTO layout VALUES (?, ?)", self._encoded.items())
            self._writer.executemany("INSERT INTO report VALUES (?, ?, ?, ?, ?)", rows)
            for layout_id in freed_layouts.difference(self._encoded):
                self._writer.execute(
                    "DELETE FROM layout WHERE id = ?"
                    " AND NOT EXISTS (SELECT 1 FROM report WHERE layout_id = layout.id)",
                    (layout_id,),
                )
            if self._failing or self._lost:
                self._writer.execute("UPDATE meta SET epoch = ?, lost = 0", (self._epoch,))
            spool_file.shrink(self._writer)
        self._size, self._lost = size, 0
        self._unsaved.clear()
        self._encoded = {report.layout.id: self._encoded[report.layout.id]}
        if self._failing:
            self._failing = False
            log.info("spool %s takes reports again", self._path)

    def _delete(self, condition: str, seq: int) -> tuple[int, int, set[bytes]]:
        """(bytes, reports lost if nobody had acked them, layouts referred to) of what it deletes."""
        rows = self._writer.execute(
            f"DELETE FROM report WHERE {condition} RETURNING length(payload), dropped, layout_id",  # noqa: S608 - a constant
            (seq,),
        ).fetchall()
        return sum(row[0] for row in rows), sum(1 + row[1] for row in rows), {row[2] for row in rows}

    def _make_room(self, size: int, oldest: int, freed_layouts: set[bytes]) -> tuple[int, int]:
        """Drop the oldest until the rest is within the limits: (bytes left, reports lost)."""
        lost = 0
        while first := self._writer.execute(
            "SELECT seq, measured_at FROM report ORDER BY seq LIMIT 1"
        ).fetchone():
            if first[1] >= oldest and size <= self._limits.max_size:
                break
            freed, more, layouts = self._delete("seq = ?", first[0])
            size, lost = size - freed, lost + more
            freed_layouts |= layouts
        return size, lost

    def _keep_in_memory(self, report: Report, error: SpoolError) -> None:
        if not self._failing:
            self._failing = True
            # The numbers given from now on are unknown to the file. After a crash they would be given
            # again, to other reports; under an epoch that the file does not know they do no harm.
            self._epoch = random_epoch()
            log.error("%s; reports are kept in memory until it takes them", error)
        while len(self._unsaved) >= _MAX_UNSAVED:
            self._lost += 1 + self._unsaved.popleft().dropped
        while self._unsaved and self._unsaved[0].seq <= self._acked:
            self._unsaved.popleft()
        self._unsaved.append(Row.of(report._replace(dropped=self._lost)))
        self._lost = 0
