from __future__ import annotations

import gc
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import spool_file
from agent.memory_spool import MemorySpool
from agent.spool import DiskSpool, Limits, Waiting
from agent.spool_file import SpoolError
from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, Report, State
from fleetpulse.v1 import ingest_pb2 as pb


def layout_of(name: str, count: int = 1) -> Layout:
    return Layout((CheckLayout(CheckKey(name), tuple(Measurement(f"m{n}", "1") for n in range(count))),))


CPU = layout_of("cpu")
WIDE = layout_of("wide", 1000)
MANY = (1000, 1 << 30)
AnySpool = DiskSpool | MemorySpool


def decoded(waiting: Waiting, *layouts: Layout) -> list[Report]:
    known = {layout.id: layout for layout in layouts or (CPU, WIDE)}
    if not waiting.reports:
        return []
    batch = pb.ReportBatch(reports=[pb.Report.FromString(report) for report in waiting.reports])
    return [report._replace(values=tuple(report.values)) for report in convert.decode_batch(batch, known)]


def seqs(spool: AnySpool) -> list[int]:
    return [report.seq for report in decoded(spool.peek(*MANY))]


def fill(spool: AnySpool, count: int, measured_at: int = 0) -> None:
    for _ in range(count):
        spool.append(measured_at, CPU, (1.5,), ())


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(params=["disk", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., AnySpool]:
    if request.param == "memory":
        return MemorySpool

    def on_disk(limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> DiskSpool:
        spool = DiskSpool(tmp_path / "spool.db", limits, clock)
        request.addfinalizer(spool.close)
        return spool

    return on_disk


def test_first_in_first_out_until_acked(make: Callable[..., AnySpool]) -> None:
    spool = make()
    results = (CheckResult(0, State.UNKNOWN, "timed out"),)
    assert [spool.append(n, CPU, (n / 2,), results) for n in range(5)] == [1, 2, 3, 4, 5]
    assert 1 <= spool.epoch < 2**63
    first = decoded(spool.peek(2, 1 << 20))
    assert first == [Report(1, 0, CPU, (0.0,), results), Report(2, 1, CPU, (0.5,), results)]
    assert seqs(spool) == [1, 2, 3, 4, 5]
    spool.ack(3)
    assert seqs(spool) == [4, 5]
    assert spool.pending() == 2
    spool.ack(2)  # late
    assert seqs(spool) == [4, 5]
    fill(spool, 1)
    assert seqs(spool) == [4, 5, 6]
    assert spool.last_seq == 6


def test_peek_keeps_to_both_bounds_but_yields_one(make: Callable[..., AnySpool]) -> None:
    spool = make()
    assert spool.peek(*MANY) == Waiting()
    fill(spool, 10)
    size = len(spool.peek(1, 1).reports[0])
    assert len(spool.peek(1, 1).reports) == 1
    assert len(spool.peek(3, 1 << 20).reports) == 3
    waiting = spool.peek(10, 4 * size)
    assert (len(waiting.reports), waiting.last_seq) == (4, 4)


def test_layouts_come_along_unless_known(make: Callable[..., AnySpool]) -> None:
    spool = make()
    fill(spool, 1)
    spool.append(0, WIDE, (0.0,) * 1000, ())
    fill(spool, 1)
    layouts = spool.peek(*MANY).layouts
    assert {convert.layout_from_wire_bytes(data) for data in layouts.values()} == {CPU, WIDE}
    assert set(spool.peek(*MANY, {CPU.id}).layouts) == {WIDE.id}
    spool.ack(2)
    fill(spool, 1)
    assert set(spool.peek(*MANY).layouts) == {CPU.id}
    spool.append(0, WIDE, (0.0,) * 1000, ())
    assert set(spool.peek(*MANY).layouts) == {CPU.id, WIDE.id}


def test_a_layout_that_no_collector_takes_is_refused(make: Callable[..., AnySpool]) -> None:
    spool = make()
    with pytest.raises(convert.WireError, match="more than 255"):
        spool.append(0, layout_of("x" * 256), (1.0,), ())
    fill(spool, 1)
    assert seqs(spool) == [1]


def test_beyond_the_size_the_oldest_are_dropped_and_counted(make: Callable[..., AnySpool]) -> None:
    spool = make(Limits(max_size=10_000))
    spool.append(0, WIDE, (0.0,) * 1000, ())
    spool.append(0, WIDE, (0.0,) * 1000, ())  # 16 kB: one more finds no room
    fill(spool, 1)
    reports = decoded(spool.peek(*MANY))
    assert [(report.seq, report.dropped) for report in reports] == [(2, 0), (3, 1)]
    for _ in range(3):
        spool.append(0, WIDE, (0.0,) * 1000, ())
    reports = decoded(spool.peek(*MANY))
    # What a dropped report had counted is not forgotten with it.
    assert sum(report.dropped for report in reports) + len(reports) == 6
    assert reports[-1].seq == 6


def test_beyond_the_age_the_oldest_are_dropped_and_counted(make: Callable[..., AnySpool]) -> None:
    clock = Clock()
    spool = make(Limits(max_age=1000), clock=clock)
    for clock.seconds in (100.0, 100.5, 101.0, 101.7):
        fill(spool, 1)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [(3, 0), (4, 2)]


def test_a_wall_clock_that_jumps_drops_nothing_and_travels_as_it_is(make: Callable[..., AnySpool]) -> None:
    clock = Clock()
    spool = make(Limits(max_age=1000), clock=clock)
    walls = (0, 1_800_000_000_000, 5, 4_000_000_000_000)
    for wall in walls:
        clock.seconds += 0.1
        fill(spool, 1, wall)
    assert [(r.measured_at, r.dropped) for r in decoded(spool.peek(*MANY))] == [(wall, 0) for wall in walls]


def test_age_counts_the_time_in_which_an_agent_ran(tmp_path: Path) -> None:
    limits = Limits(max_age=12_000)
    # The machine boots anew each time: its monotonic clock starts near 0, its wall clock anywhere.
    for boot, wall in enumerate((0, 1_800_000_000_000, 300)):
        clock = Clock(5.0 * boot)
        spool = DiskSpool(tmp_path / "spool.db", limits, clock)
        for _ in range(4):
            clock.seconds += 1
            fill(spool, 1, wall)
        assert seqs(spool) == list(range(1, 4 * boot + 5)), "nothing is too old, whatever the clocks say"
        spool.close()
    # 14.5 s have passed in all, as the time between two boots does not count.
    clock = Clock(1000.0)
    spool = DiskSpool(tmp_path / "spool.db", limits, clock)
    clock.seconds += 2.5
    fill(spool, 1)
    assert seqs(spool)[0] == 3
    clock.seconds += 60
    fill(spool, 1)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [(14, 13)]
    spool.close()


def test_what_is_acked_is_not_dropped(make: Callable[..., AnySpool]) -> None:
    clock = Clock()
    spool = make(Limits(max_age=1000), clock=clock)
    fill(spool, 3)
    spool.ack(3)
    clock.seconds = 5.0
    fill(spool, 1)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [(4, 0)]


def test_a_discarded_report_is_counted(make: Callable[..., AnySpool]) -> None:
    spool = make()
    fill(spool, 3)
    spool.discard(2)
    spool.discard(2)
    fill(spool, 2)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [(1, 0), (3, 0), (4, 1), (5, 0)]


def test_a_new_epoch_keeps_what_waits(make: Callable[..., AnySpool]) -> None:
    spool = make()
    fill(spool, 2)
    before = spool.epoch
    spool.new_epoch()
    assert spool.epoch != before
    assert seqs(spool) == [1, 2]


def test_reopened_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 3)
    spool.discard(3)
    spool.ack(2)
    epoch = spool.epoch
    spool.close()
    assert path.stat().st_mode & 0o777 == 0o600
    spool = DiskSpool(path)
    assert (spool.epoch, spool.last_seq, spool.pending()) == (epoch, 3, 0)
    fill(spool, 1)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [(4, 1)]
    spool.new_epoch()
    changed = spool.epoch
    spool.close()
    reopened = DiskSpool(path)
    assert reopened.epoch == changed
    reopened.close()


def test_one_commit_a_report(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 1)
    statements: list[str] = []
    spool._writer.set_trace_callback(statements.append)
    for _ in range(5):
        spool.ack(spool.last_seq)
        fill(spool, 1)
    assert statements.count("COMMIT") == 5
    assert sum(s.startswith("BEGIN") for s in statements) == 5
    spool._writer.set_trace_callback(None)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM report").fetchone() == (1,)
        assert other.execute("SELECT count(*) FROM layout").fetchone() == (1,)
    other.close()
    spool.close()


def test_layouts_leave_with_their_last_report(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    for number in range(5):
        spool.append(0, layout_of(f"check{number}"), (0.0,), ())
        spool.ack(max(0, number - 1))
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM layout").fetchone() == (3,)
    other.close()
    spool.close()


def test_a_drained_backlog_gives_its_space_back(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    for _ in range(600):
        spool.append(0, WIDE, (0.5,) * 1000, ())
    spool.ack(600)
    for _ in range(10):
        fill(spool, 1)
        spool.ack(spool.last_seq)
    spool.close()
    assert path.stat().st_size < 1.5 * (1 << 20)


_WRITER = """
import sys
from pathlib import Path
from agent.spool import DiskSpool
from fleetpulse.model import *
layout = Layout((CheckLayout(CheckKey("cpu"), (Measurement("m0", "1"),)),))
spool = DiskSpool(Path(sys.argv[1]))
while True:
    seq = spool.append(0, layout, (1.5,), ())
    print(seq, flush=True)
    if seq % 7 == 0:
        spool.ack(seq - 5)
"""


def test_what_append_returned_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    last = 0
    epochs = set()
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            goal = last + 40
            for line in writer.stdout:
                last = int(line)
                if last >= goal:
                    break
            writer.send_signal(signal.SIGKILL)
            rest = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
            last = max([last, *rest])
        spool = DiskSpool(path)
        waiting = seqs(spool)
        # The last append may have been committed but not yet told.
        assert waiting[-1] in (last, last + 1)
        assert waiting == list(range(waiting[0], waiting[-1] + 1))
        assert waiting[0] <= last - 4
        assert spool.last_seq == waiting[-1]
        last = spool.last_seq
        epochs.add(spool.epoch)
        spool.close()
    assert len(epochs) == 1
    assert not list(tmp_path.glob("*corrupt*"))


@pytest.mark.parametrize("damage", ["garbage", "page", "version"])
def test_a_corrupt_file_is_set_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    for _ in range(50):
        spool.append(0, WIDE, (0.5,) * 1000, ())
    epoch = spool.epoch
    spool.close()
    if damage == "garbage":
        path.write_bytes(b"this is not a database" * 1000)
    elif damage == "page":
        content = bytearray(path.read_bytes())
        content[4096 : 4096 * 40] = b"\xa5" * (4096 * 39)
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99")
        other.close()
    spool = DiskSpool(path)
    assert spool.epoch != epoch
    fill(spool, 1)
    assert len(seqs(spool)) == 1
    spool.close()
    assert (tmp_path / "spool.db.corrupt-1").exists()
    assert "set aside as spool.db.corrupt-1" in caplog.text


def test_only_a_few_corrupt_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    for _ in range(6):
        path.write_bytes(b"garbage" * 1000)
        DiskSpool(path).close()
    assert sorted(f.name for f in tmp_path.glob("*corrupt*")) == [f"spool.db.corrupt-{n}" for n in (4, 5, 6)]


def test_corruption_while_running_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 3)
    epoch = spool.epoch
    spool._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)
    assert spool.peek(*MANY) == Waiting()
    assert spool.epoch != epoch
    assert spool.append(0, CPU, (1.0,), ()) == 4
    assert seqs(spool) == [4]
    spool.close()


def test_a_full_disk_stops_no_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 2)
    epoch = spool.epoch
    pages = spool._writer.execute("PRAGMA page_count").fetchone()[0]
    spool._writer.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as a full disk gives
    for _ in range(3):
        spool.append(0, WIDE, (0.5,) * 1000, ())
    assert "full" in caplog.text
    assert caplog.text.count("kept in memory") == 1
    assert spool.epoch == epoch
    assert seqs(spool) == [1, 2, 3, 4, 5]
    assert set(spool.peek(*MANY).layouts) == {CPU.id, WIDE.id}
    assert spool.pending() == 5
    spool.ack(3)
    assert seqs(spool) == [4, 5]
    spool.discard(5)
    spool._writer.execute("PRAGMA max_page_count = 1000000")
    fill(spool, 1)
    reports = decoded(spool.peek(*MANY))
    assert [(r.seq, r.dropped) for r in reports] == [(4, 0), (6, 1)]
    spool.close()
    reopened = DiskSpool(path)
    assert (reopened.epoch, seqs(reopened)) == (epoch, [4, 6])
    reopened.close()


def test_at_the_stop_the_disk_gets_what_only_memory_has(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 1)
    spool._writer.execute("PRAGMA query_only = 1")
    fill(spool, 3)
    spool.ack(2)
    spool._writer.execute("PRAGMA query_only = 0")
    spool.close()
    fill(spool, 1)  # a round that hung over the stop
    reopened = DiskSpool(path)
    assert seqs(reopened) == [3, 4]
    assert reopened.epoch == spool.epoch
    reopened.close()


def test_a_new_epoch_needs_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 1)
    before = spool.epoch
    spool._writer.execute("PRAGMA query_only = 1")
    spool.new_epoch()
    assert spool.epoch != before
    spool._writer.execute("PRAGMA query_only = 0")
    fill(spool, 1)
    spool._writer.close()
    reopened = DiskSpool(path)  # as after kill -9
    assert reopened.epoch == spool.epoch
    reopened.close()
    spool.close()


def test_a_spool_that_cannot_be_replaced_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Corrupt, and its folder takes no new file just then: what is new is sent from memory."""
    caplog.set_level("INFO")
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 3)
    epoch = spool.epoch
    spool._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)

    def refuse(_: Path) -> Path:
        raise SpoolError("cannot set the corrupt spool aside: Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr("agent.spool_file.set_aside", refuse)
        with pytest.raises(SpoolError, match="set the corrupt spool aside"):
            spool.peek(*MANY)
        changed = spool.epoch
        assert changed != epoch
        fill(spool, 2)
        assert seqs(spool) == [4, 5]
        assert spool.pending() == 2
    fill(spool, 1)
    assert seqs(spool) == [4, 5, 6]
    assert spool.epoch == changed
    assert "takes reports again" in caplog.text
    spool.close()
    reopened = DiskSpool(path)
    assert seqs(reopened) == [4, 5, 6]
    reopened.close()


def test_a_spool_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    reports = [Report(seq, seq, CPU, (float(seq),), ()) for seq in (7, 8, 9)]
    with sqlite3.connect(path) as old:
        old.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE report (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, measured_at INTEGER NOT NULL,
                layout_id BLOB NOT NULL, payload BLOB NOT NULL, dropped INTEGER NOT NULL
            );
            CREATE TABLE layout (id BLOB PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID;
            CREATE TABLE meta (epoch INTEGER NOT NULL, lost INTEGER NOT NULL);
            INSERT INTO meta VALUES (4711, 2);
            PRAGMA user_version = 1;
            """
        )
        old.execute("INSERT INTO layout VALUES (?, ?)", (CPU.id, convert.layout_to_wire_bytes(CPU)))
        old.executemany(
            "INSERT INTO report VALUES (?, ?, ?, ?, 0)",
            [(r.seq, 1_700_000_000_000 + r.seq, CPU.id, convert.encode_report(r)) for r in reports],
        )
        old.execute("INSERT INTO report VALUES (12, 0, x'', x'', 0)")
        old.execute("DELETE FROM report WHERE seq = 12")
    old.close()
    spool = DiskSpool(path)
    assert (spool.epoch, spool.last_seq, decoded(spool.peek(*MANY))) == (4711, 12, reports)
    fill(spool, 1)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [(7, 0), (8, 0), (9, 0), (13, 2)]
    spool.close()


def test_the_layout_of_the_newest_report_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    assert spool.last_layout is None
    fill(spool, 1)
    spool.append(0, WIDE, (0.0,) * 1000, ())
    spool.ack(2)
    spool.close()
    reopened = DiskSpool(path)
    assert reopened.last_layout == WIDE
    assert (reopened.pending(), seqs(reopened)) == (0, [])
    fill(reopened, 1)
    assert reopened.pending() == 1
    reopened.close()
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM layout").fetchone() == (1,)
    other.close()


def test_a_discarded_number_is_not_given_again(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = DiskSpool(path)
    fill(spool, 2)
    spool.discard(2)
    reopened = DiskSpool(path)  # as after kill -9
    assert reopened.append(0, CPU, (1.0,), ()) == 3
    reopened.close()
    spool.close()


def test_a_backlog_of_a_day_leaves_without_passing_through_memory(make: Callable[..., AnySpool]) -> None:
    spool = make()
    if isinstance(spool, DiskSpool):
        spool._writer.execute("PRAGMA synchronous = OFF")
    layout = layout_of("day", 60)
    for _ in range(5760):  # at 15 s
        spool.append(0, layout, (1.5,) * 60, ())
    total = 5760 * len(spool.peek(1, 1).reports[0])
    threads = threading.active_count()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        taken = 0
        while waiting := spool.peek(200, 1 << 18).reports:
            taken += len(waiting)
            spool.ack(taken)
        del waiting
        spool.append(0, layout, (1.5,) * 60, ())
        after, peak = (used - before for used in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert taken == 5760
    assert peak < total / 10
    assert after < total / 10
    assert threading.active_count() <= threads


def test_memory_holds_only_so_much_for_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.spool._MAX_UNSAVED", 3)
    spool = DiskSpool(tmp_path / "spool.db")
    spool._writer.execute("PRAGMA query_only = 1")
    fill(spool, 5)
    reports = decoded(spool.peek(*MANY))
    assert [(r.seq, r.dropped) for r in reports] == [(3, 0), (4, 1), (5, 1)]
    monkeypatch.setattr("agent.spool._MAX_UNSAVED", 100)
    monkeypatch.setattr("agent.spool._MAX_UNSAVED_SIZE", 10_000)
    for number in range(30):
        spool.append(0, layout_of(f"wide{number}", 1000), (0.0,) * 1000, ())
    assert [r.seq for r in spool._unsaved] == [34, 35]
    assert len(spool._encoded) == 2
    spool._writer.execute("PRAGMA query_only = 0")
    spool.close()


def test_an_unusable_place_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="cannot be opened: No such file or directory"):
        DiskSpool(tmp_path / "missing" / "spool.db")


def test_foreign_errors_stop_at_the_file(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    spool._reader.close()
    with pytest.raises(SpoolError, match="closed"):
        spool.peek(*MANY)
    spool.close()
    with pytest.raises(SpoolError), spool_file.errors(tmp_path):
        raise sqlite3.OperationalError("disk I/O error")


def test_reading_goes_on_while_another_thread_writes(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    writer = threading.Thread(target=fill, args=(spool, 300))
    writer.start()
    seen = 0
    while seen < 300:
        waiting = decoded(spool.peek(50, 1 << 20))
        assert [r.seq for r in waiting] == list(range(seen + 1, seen + 1 + len(waiting)))
        if waiting:
            seen = waiting[-1].seq
            spool.ack(seen)
        assert writer.is_alive() or spool.last_seq == 300
    writer.join()
    spool.close()
