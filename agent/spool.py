"""The agent's bounded queue on disk of what is not acked yet.

SQLite in WAL mode with `synchronous=FULL`: a report that `append` returned survives kill -9 and power
loss. A steady state costs one commit a report, because what has been acked since is deleted in the
same transaction. `append` belongs to the measuring thread and the rest to the event loop, which reads
through a connection of its own, so that a slow fsync never blocks it.

Age is counted on a clock of the spool's own, which goes on while an agent runs and stands still while
none does: no wall clock that jumps, or was wrong before a restart, can make the whole backlog too old.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent import spool_file, spool_rows
from agent.backlog import Limits, Row, Spool, Waiting, random_epoch
from agent.spool_file import SpoolCorruptError, SpoolError
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import CheckResult, Layout, Report

log = logging.getLogger(__name__)

# Held in memory while the disk takes nothing: four hours at 15 s, unless the reports are very large.
_MAX_UNSAVED = 1_000
_MAX_UNSAVED_SIZE = 16 << 20  # bytes
_PATIENCE = 5.0  # seconds that the event loop's side, and the stop, wait for a commit that hangs


class _Meta(NamedTuple):
    """The spool's counts, as the file has them or is to have them."""

    epoch: int
    lost: int
    contacted_seq: int | None


class DiskSpool:
    """The spool in a file. Raises SpoolError if the file can be neither used nor replaced.

    `clock` yields monotonic seconds.
    """

    def __init__(
        self, path: Path, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._limits = limits or Limits()
        self._clock = clock
        self._began = -clock()  # seconds that the spool's clock is ahead of `clock`
        self._lock = threading.Lock()  # for the writing connection and the counts; reading needs none
        self._is_open = False
        self._is_closed = False
        self._acked = 0
        self._last_seq = 0
        self._lost = 0
        # Reports that the disk did not take (full, failing). They are sent all the same: a machine
        # whose disk is full is one that the admins want to hear from.
        self._unsaved: deque[Row] = deque()
        self._unsaved_size = 0
        self._encoded: dict[bytes, bytes] = {}  # the layouts of the newest and of unsaved reports
        self._is_failing = False
        self.last_layout: Layout | None = None
        """What the newest report referred to when the spool was opened."""
        self._epoch = random_epoch()
        self._stored = _Meta(self._epoch, 0, None)
        try:
            self._load()
        except SpoolCorruptError as error:
            self._replace(error)
        # Written with the first report, so that what this agent adds, should it reach no collector, is not
        # taken for sent by the next one.
        contacted_seq = self._stored.contacted_seq
        self._contacted_seq = self._last_seq if contacted_seq is None else contacted_seq
        self._is_contact_noted = False
        self.sent_seq = self._contacted_seq

    @property
    def epoch(self) -> int:
        """As in Spool."""
        return self._epoch

    @property
    def last_seq(self) -> int:
        """As in Spool."""
        return self._last_seq

    @property
    def is_contact_noted(self) -> bool:
        """As in Spool."""
        return self._is_contact_noted

    def note_contact(self) -> None:
        """As in Spool. Raises SpoolError if a commit hangs.

        While the disk takes no writes, it is noted in memory: a machine whose disk is full is heard.
        """
        with self._locked():
            self._is_contact_noted = True
            if self._stored.contacted_seq is not None:
                self._write_meta_if_possible("that the collector was reached")

    def append(
        self, measured_at: int, layout: Layout, values: tuple[float, ...], results: tuple[CheckResult, ...]
    ) -> int:
        """Keep one report, drop the oldest that no longer fit, and return its number.

        `measured_at` in milliseconds since the Unix epoch. Raises WireError for a layout that no
        collector would take.
        """
        with self._lock:
            if layout.id not in self._encoded:
                data = convert.layout_to_wire_bytes(layout)
                convert.layout_from_wire_bytes(data)
                self._encoded[layout.id] = data
            # Before the commit: the reading thread may see, send and ack the report right after it.
            self._last_seq += 1
            report = Report(self._last_seq, measured_at, layout, values, results)
            kept_at = int((self._began + self._clock()) * 1000)
            try:
                try:
                    if not self._is_open:
                        self._load()
                    self._save(report, kept_at)
                except SpoolCorruptError as error:
                    self._replace(error)
                    self._save(report, kept_at)
            except SpoolError as error:
                self._keep_in_memory(report, kept_at, error)
            return report.seq

    def peek(self, max_reports: int, max_bytes: int, known: Collection[bytes] = ()) -> Waiting:
        """As in Spool. Raises SpoolError while the disk cannot be read."""
        # Taken before the file is read: a row that moves there meanwhile is found there.
        unsaved = tuple(self._unsaved)
        layouts = dict(self._encoded) if unsaved else {}
        rows, is_cut = list[tuple[int, bytes, bytes]](), False
        reader = self._reader
        if self._is_open:
            try:
                with spool_file.errors(self._path):
                    found = spool_rows.read(reader, self._acked, max_reports, max_bytes, known)
                rows, is_cut = found.rows, found.is_cut
                layouts |= found.layouts
            except SpoolCorruptError as error:
                with self._locked(at_once=True):
                    if self._reader is reader:  # else it has been replaced meanwhile
                        self._replace(error)
                return Waiting()
        size = sum(len(payload) for _, _, payload in rows)
        last_on_disk = rows[-1][0] if rows else 0
        for row in () if is_cut else unsaved:  # if cut, they would follow upon a gap
            if row.seq <= max(last_on_disk, self._acked):
                continue
            size += len(row.payload)
            if rows and (len(rows) >= max_reports or size > max_bytes):
                break
            if row.layout_id not in known and row.layout_id not in layouts:
                break  # written meanwhile, and found on disk the next time
            rows.append((row.seq, row.layout_id, row.payload))
        needed = {layout_id for _, layout_id, _ in rows if layout_id not in known}
        return Waiting(
            tuple(payload for _, _, payload in rows),
            {layout_id: layouts[layout_id] for layout_id in needed},
            rows[-1][0] if rows else 0,
            rows[0][0] if rows else 0,
        )

    def ack(self, seq: int) -> None:
        """As in Spool. Costs nothing now: the next `append` deletes."""
        self._acked = max(self._acked, min(seq, self._last_seq))

    def discard(self, seq: int) -> None:
        """As in Spool. Raises SpoolError while the disk takes no writes, or if a commit hangs."""
        with self._locked():
            for row in tuple(self._unsaved):
                if row.seq == seq:
                    self._unsaved.remove(row)
                    self._unsaved_size -= len(row.payload)
                    self._lost += 1 + row.dropped
                    return
            with self._transaction():
                deleted = spool_rows.delete(self._writer, seq, seq)
                spool_rows.delete_unused(self._writer, deleted.layouts.difference(self._encoded))
                self._writer.execute(
                    "UPDATE meta SET lost = lost + ?, last_seq = max(last_seq, ?)", (deleted.lost, seq)
                )
            self._size -= deleted.size
            self._lost += deleted.lost
            self._stored = self._stored._replace(lost=self._stored.lost + deleted.lost)

    def pending(self) -> int:
        """As in Spool. Raises SpoolError while the disk cannot be read."""
        unsaved = sum(row.seq > self._acked for row in tuple(self._unsaved))
        if not self._is_open:
            return unsaved
        with spool_file.errors(self._path):
            count = self._reader.execute("SELECT count(*) FROM report WHERE seq > ?", (self._acked,))
            return int(count.fetchone()[0]) + unsaved

    def new_epoch(self) -> None:
        """As in Spool. Raises SpoolError if a commit hangs.

        While the disk takes no writes, it is written with the next report that it takes.
        """
        with self._locked():
            self._epoch = random_epoch()
            self._write_meta_if_possible("the new epoch")

    def close(self) -> None:
        """Write what only memory has, forget what was acked, and close the file.

        A file whose last commit hangs is left as it is.
        """
        with contextlib.ExitStack() as lock:
            try:
                lock.enter_context(self._locked())
            except SpoolError as error:
                self._is_closed = True
                log.warning("%s; it is left behind", error)
                return
            unsaved = [row for row in self._unsaved if row.seq > self._acked]
            try:
                with self._transaction():
                    spool_rows.insert(self._writer, unsaved, self._encoded)
                    self._write_meta(self._lost)
                    newest = self._writer.execute("SELECT coalesce(max(seq), 0) FROM report").fetchone()[0]
                    deleted = spool_rows.delete(self._writer, 0, min(self._acked, newest - 1))
                    spool_rows.delete_unused(self._writer, deleted.layouts.difference(self._encoded))
            except SpoolError as error:
                log.warning("%s; %d reports in memory are lost", error, len(unsaved))
            self._disconnect()
            self._is_closed = True

    def _load(self) -> None:
        if self._is_closed:  # a round that hung over the stop; the file may be another agent's by now
            raise SpoolError(f"spool {self._path} is closed")
        writer, reader = spool_file.connect(self._path, self._epoch)
        try:
            with spool_file.errors(self._path):
                epoch, lost, contacted_seq, acked, last_seq = writer.execute(
                    "SELECT epoch, lost, contacted_seq, acked, last_seq FROM meta"
                ).fetchone()
                newest = writer.execute(
                    "SELECT seq, kept_at, (SELECT payload FROM layout WHERE id = layout_id)"
                    " FROM report ORDER BY seq DESC LIMIT 1"
                ).fetchone()
                size = writer.execute("SELECT coalesce(sum(length(payload)), 0) FROM report").fetchone()[0]
        except BaseException:
            writer.close()
            reader.close()
            raise
        self._writer, self._reader, self._is_open = writer, reader, True
        self._stored = _Meta(epoch, lost, contacted_seq)
        self._epoch = epoch
        self._size: int = size
        self._lost += lost
        self._acked = max(self._acked, acked)
        # A replaced file goes on counting: its first number must not look like an old one.
        self._last_seq = max(self._last_seq, last_seq, newest[0] if newest else 0)
        if newest:
            self._began = max(self._began, newest[1] / 1000 - self._clock())
            with contextlib.suppress(WireError):  # garbled; whoever is sent it finds out
                self.last_layout = convert.layout_from_wire_bytes(newest[2] or b"")

    def _replace(self, error: SpoolCorruptError) -> None:
        if self._is_open:  # else a new epoch has begun already, and only the file is still to be replaced
            self._disconnect()
            self._epoch = random_epoch()
        aside = spool_file.set_aside(self._path)
        log.error("%s; set aside as %s, what waited in it cannot be delivered", error, aside.name)
        self._load()

    def _disconnect(self) -> None:
        if self._is_open:
            self._is_open = False
            self._writer.close()
            self._reader.close()

    @contextmanager
    def _locked(self, *, at_once: bool = False) -> Iterator[None]:
        """The lock, for whoever must not hang with a disk that does."""
        patience = 0 if at_once else _PATIENCE
        if not self._lock.acquire(timeout=patience):
            raise SpoolError(f"spool {self._path} is busy: a commit has not ended within {patience:g} s")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if not self._is_open:
            raise SpoolError(f"spool {self._path} is closed")
        with spool_file.errors(self._path), spool_file.transaction(self._writer):
            yield

    def _save(self, report: Report, kept_at: int) -> None:
        """One transaction: forget what is acked, make room, write what is not on disk yet."""
        rows = [row for row in self._unsaved if row.seq > self._acked]
        with self._transaction():
            acked = spool_rows.delete(self._writer, 0, self._acked)
            size = self._size - acked.size + sum(len(row.payload) for row in rows)
            dropped = spool_rows.make_room(
                self._writer, size, kept_at - self._limits.max_age, self._limits.max_size
            )
            rows.append(Row.of(report._replace(dropped=self._lost + dropped.lost), kept_at))
            size += len(rows[-1].payload) - dropped.size
            spool_rows.insert(self._writer, rows, self._encoded)
            freed = acked.layouts | dropped.layouts
            spool_rows.delete_unused(self._writer, freed.difference(self._encoded))
            meta = self._stored
            if meta != self._meta(lost=0):
                meta = self._write_meta(lost=0)
            spool_file.shrink(self._writer)
        self._stored = meta
        self._size, self._lost = size, 0
        self._unsaved.clear()
        self._unsaved_size = 0
        self._encoded = {report.layout.id: self._encoded[report.layout.id]}
        if self._is_failing:
            self._is_failing = False
            log.info("spool %s takes reports again", self._path)

    def _meta(self, lost: int) -> _Meta:
        return _Meta(self._epoch, lost, None if self._is_contact_noted else self._contacted_seq)

    def _write_meta(self, lost: int) -> _Meta:
        """What is acked, too: a report of an earlier epoch must not wait again in a new one."""
        meta = self._meta(lost)
        self._writer.execute(
            "UPDATE meta SET epoch = ?, lost = ?, contacted_seq = ?, acked = ?", (*meta, self._acked)
        )
        return meta

    def _write_meta_if_possible(self, what: str) -> None:
        try:
            with self._transaction():
                meta = self._write_meta(self._lost)
            self._stored = meta
        except SpoolError as error:
            log.warning("%s; %s is kept in memory until it takes it", error, what)

    def _keep_in_memory(self, report: Report, kept_at: int, error: SpoolError) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.error("%s; reports are kept in memory until it takes them", error)
        while self._unsaved and self._unsaved[0].seq <= self._acked:
            self._unsaved_size -= len(self._unsaved.popleft().payload)
        while len(self._unsaved) >= _MAX_UNSAVED or self._unsaved_size > _MAX_UNSAVED_SIZE:
            oldest = self._unsaved.popleft()
            self._unsaved_size -= len(oldest.payload)
            self._lost += 1 + oldest.dropped
        row = Row.of(report._replace(dropped=self._lost), kept_at)
        self._lost = 0
        self._unsaved.append(row)
        self._unsaved_size += len(row.payload)
        used = {row.layout_id for row in self._unsaved}
        self._encoded = {key: data for key, data in self._encoded.items() if key in used}


__all__ = ["DiskSpool", "Limits", "Row", "Spool", "Waiting", "random_epoch"]
