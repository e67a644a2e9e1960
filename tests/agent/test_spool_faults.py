"""What the spool does when the disk refuses, hangs, or goes back in time, and the agent is killed besides."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agent.spool import DiskSpool
from agent.spool_file import SpoolError
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, State
from tests.agent.scripted_collector import Script, serving, until
from tests.agent.test_spool import CPU, MANY, decoded, fill, seqs
from tests.agent.test_stream import delivering, run

LOAD = Layout((CheckLayout(CheckKey("load"), (Measurement("m", "1"),)),))


def take_nothing(spool: DiskSpool, *, yes: bool = True) -> None:
    """Make the disk refuse writes, or take them again."""
    spool._writer.execute(f"PRAGMA query_only = {int(yes)}")


def killed(spool: DiskSpool) -> DiskSpool:
    """What the next agent finds after kill -9."""
    spool._disconnect()
    return DiskSpool(spool._path)


async def deliver_all(port: int, spool: DiskSpool) -> None:
    async with delivering(port, spool):  # type: ignore[arg-type]
        await until(lambda: spool.pending() == 0)


@pytest.mark.parametrize("most", [2, 3, 4, 100])
@pytest.mark.parametrize("room", [2, 3, 4, 5, 100])
def test_what_memory_holds_never_overtakes_what_the_disk_holds(tmp_path: Path, most: int, room: int) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    fill(spool, 3)
    size = len(spool.peek(1, 1).reports[0])
    spool.append(0, CPU, (1.5,), (CheckResult(0, State.CRITICAL, "x" * 2 * size),))
    take_nothing(spool)
    fill(spool, 3)
    taken: list[int] = []
    while batch := decoded(spool.peek(most, room * size + size // 2)):
        taken += [report.seq for report in batch]
        spool.ack(taken[-1])
    assert taken == [1, 2, 3, 4, 5, 6, 7]
    take_nothing(spool, yes=False)
    spool.close()


def test_a_report_that_reaches_the_disk_while_it_is_read_is_read_the_next_time(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    fill(spool, 2)
    take_nothing(spool)
    spool.append(0, LOAD, (1.0,), ())
    layouts, spool._encoded = spool._encoded, {}  # as a commit between the two snapshots leaves it
    assert seqs(spool) == [1, 2]
    spool._encoded = layouts
    take_nothing(spool, yes=False)
    fill(spool, 1)
    assert spool.peek(*MANY).last_seq == 4
    spool.close()


@pytest.mark.parametrize("new", [10, 40])
def test_reports_under_numbers_sent_from_memory_are_not_taken_for_sent(tmp_path: Path, new: int) -> None:
    """The disk was full, the agent was killed, and its successors reached no collector for a while."""

    async def test() -> None:
        script = Script()
        async with serving(script) as port:
            spool = DiskSpool(tmp_path / "spool.db")
            fill(spool, 20)
            await deliver_all(port, spool)
            take_nothing(spool)
            fill(spool, 30)
            await deliver_all(port, spool)
            assert script.committed == {spool.epoch: 50}
            for _ in range(3):  # restarts without contact
                spool = killed(spool)
                fill(spool, new, measured_at=1)
            spool = killed(spool)
            await deliver_all(port, spool)
        assert sum(report.measured_at == 1 for report in script.reports.values()) == 3 * new
        assert len(script.reports) == 50 + 3 * new
        spool.close()

    run(test)


@pytest.mark.parametrize("stop", ["kill", "close"])
def test_what_may_have_been_sent_is_known_over_restarts(tmp_path: Path, stop: str) -> None:
    def restarted(spool: DiskSpool) -> DiskSpool:
        if stop == "close":
            spool.close()
        return killed(spool)

    spool = DiskSpool(tmp_path / "spool.db")
    fill(spool, 3)
    spool = restarted(spool)
    assert spool.sent_seq == 0
    spool.note_contact()
    fill(spool, 2)
    spool = restarted(spool)
    assert spool.sent_seq == 5
    fill(spool, 2)
    spool = restarted(spool)
    fill(spool, 2)
    spool = restarted(spool)
    assert (spool.sent_seq, spool.last_seq) == (5, 9)
    spool.close()


def test_the_contact_is_on_disk_before_anything_is_sent(tmp_path: Path) -> None:
    async def test() -> None:
        spool, script = DiskSpool(tmp_path / "spool.db"), Script(acks=False)
        fill(spool, 3)
        async with serving(script) as port, delivering(port, spool):  # type: ignore[arg-type]
            await until(lambda: script.batches == [[1, 2, 3]])
            other = DiskSpool(tmp_path / "spool.db")
            assert other.sent_seq == 3
            other._disconnect()
        spool.close()

    run(test)


def test_a_full_disk_at_the_first_contact_silences_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        spool, script = DiskSpool(tmp_path / "spool.db"), Script()
        fill(spool, 1)
        take_nothing(spool)
        fill(spool, 1)
        async with serving(script) as port:
            await deliver_all(port, spool)
        assert script.seqs() == [1, 2]
        take_nothing(spool, yes=False)
        fill(spool, 1)
        spool = killed(spool)
        assert spool.sent_seq == 3
        spool.close()

    run(test)


def test_what_both_know_does_not_wait_again_after_a_new_epoch_and_a_kill(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    fill(spool, 10)
    spool.ack(7)
    spool.new_epoch()
    reopened = killed(spool)
    assert reopened.epoch == spool.epoch
    assert seqs(reopened) == [8, 9, 10]
    reopened.close()


def test_a_drop_that_memory_has_told_is_not_told_again(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    fill(spool, 3)
    spool.discard(1)
    take_nothing(spool)
    fill(spool, 1)
    take_nothing(spool, yes=False)
    fill(spool, 1)
    spool = killed(spool)
    fill(spool, 1)
    assert [(r.seq, r.dropped) for r in decoded(spool.peek(*MANY))] == [
        (2, 0),
        (3, 0),
        (4, 1),
        (5, 0),
        (6, 0),
    ]
    spool.close()


def test_a_commit_that_hangs_holds_neither_the_stop_nor_the_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.spool._PATIENCE", 0.05)
    spool = DiskSpool(tmp_path / "spool.db")
    fill(spool, 2)
    epoch = spool.epoch
    with spool._lock:  # as `append` does over its fsync
        for touch in (lambda: spool.discard(1), spool.new_epoch, spool.note_contact):
            with pytest.raises(SpoolError, match="busy"):
                touch()
        assert (spool.epoch, seqs(spool)) == (epoch, [1, 2])
        spool.close()
    assert "left behind" in caplog.text
    reopened = killed(spool)
    assert seqs(reopened) == [1, 2]
    reopened.close()


def test_nobody_else_reads_the_spool_or_its_log(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    (tmp_path / "spool.db-wal").touch(0o644)  # of an agent that was killed
    earlier = os.umask(0o022)
    try:
        spool = DiskSpool(path)
        fill(spool, 1)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        spool.close()
    finally:
        os.umask(earlier)
    assert modes == dict.fromkeys(("spool.db", "spool.db-wal", "spool.db-shm"), 0o600)
