"""What a power cut leaves of the spool: copies of its files, taken while it is written, whole and torn."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.spool import DiskSpool, Limits
from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, Layout, Measurement
from fleetpulse.v1 import ingest_pb2 as pb
from tests.conftest import require
from tests.processes import clean_environ

LAYOUTS = [Layout((CheckLayout(CheckKey(f"c{n}"), (Measurement("m", "1"),)),)) for n in range(3)]

# Each report's value is its number. Layouts change, acks come late, and a checkpoint moves pages from the
# log into the file every few reports, so that copies are taken in the middle of all of these.
_CHECKPOINT_AT = 40  # pages in the log
_WRITER = f"""
import os, sys
from pathlib import Path
from agent.spool import DiskSpool
from tests.agent.test_spool_crash import LAYOUTS
spool = DiskSpool(Path(sys.argv[1]))
spool._writer.execute("PRAGMA wal_autocheckpoint = {_CHECKPOINT_AT}")
while True:
    number = spool.last_seq + 1
    spool.append(0, LAYOUTS[number // 20 % 3], (float(number),), ())
    os.write(1, b"%d\\n" % number)
    if number % 50 == 0:
        spool.ack(number - 30)
"""


class Image(NamedTuple):
    """The spool's files as a power cut might have left them. `kept` had been appended before, at least."""

    folder: Path
    kept: int

    @property
    def log(self) -> Path:
        return self.folder / "spool.db-wal"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Image]]:
    """Copies taken while another process appended, stopped at whatever it was doing."""
    folder = tmp_path_factory.mktemp("spool")
    taken: list[Image] = []
    command = [sys.executable, "-c", _WRITER, str(folder / "spool.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environ({})) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            number = int(line)
            if number == 1 or (number % 6 == 0 and number > taken[-1].kept):
                taken.append(take_image(writer.pid, folder, number))
            if number == 300:
                break
        writer.kill()
    yield taken
    shutil.rmtree(folder)


def take_image(writer: int, folder: Path, kept: int) -> Image:
    os.kill(writer, signal.SIGSTOP)
    os.waitpid(writer, os.WUNTRACED)  # both files at one moment
    image = Image(folder / f"image{kept}", kept)
    image.folder.mkdir()
    for name in ("spool.db", "spool.db-wal"):
        shutil.copy(folder / name, image.folder / name)
    os.kill(writer, signal.SIGCONT)
    return image


def contents(folder: Path) -> list[int]:
    """Open a spool as an agent would, check that it works, and say what waits in it."""
    spool = DiskSpool(folder / "spool.db", Limits(max_age=10**15))
    waiting = spool.peek(10_000, 1 << 30)
    layouts = {data: convert.layout_from_wire_bytes(data) for data in waiting.layouts.values()}
    known = {layout.id: layout for layout in layouts.values()}
    batch = pb.ReportBatch(reports=[pb.Report.FromString(report) for report in waiting.reports])
    reports = convert.decode_batch(batch, known) if waiting.reports else []
    assert [tuple(r.values) for r in reports] == [(float(r.seq),) for r in reports]
    assert [r.layout for r in reports] == [LAYOUTS[r.seq // 20 % 3] for r in reports]
    assert spool.last_seq == (reports[-1].seq if reports else 0)
    assert spool.append(0, LAYOUTS[0], (1.0,), ()) == spool.last_seq
    assert spool.pending() == len(reports) + 1
    spool.close()
    assert not list(folder.glob("*corrupt*"))
    return [r.seq for r in reports]


def expect_a_run(seqs: list[int]) -> None:
    """Nothing is missing between the oldest and the newest."""
    assert not seqs or seqs == list(range(seqs[0], seqs[-1] + 1))


def test_after_a_power_cut_everything_that_was_appended_is_there(images: list[Image], tmp_path: Path) -> None:
    assert len(images) > 40
    for image in images:
        seqs = contents(copy_of(image, tmp_path).folder)
        expect_a_run(seqs)
        assert seqs[-1] >= image.kept
        assert seqs[0] <= max(1, seqs[-1] - 29), "nothing is gone that was not acked"


def test_what_a_checkpoint_wrote_and_did_not_sync_may_be_lost(images: list[Image], tmp_path: Path) -> None:
    """The file as it was earlier, with a log that has not begun anew since: all of it is in the log."""
    pairs = 0
    for earlier, later in itertools.combinations(images, 2):
        if generation(earlier) == generation(later) and pairs < 60:
            copy = copy_of(later, tmp_path / str(pairs))
            shutil.copy(earlier.folder / "spool.db", copy.folder / "spool.db")
            seqs = contents(copy.folder)
            expect_a_run(seqs)
            assert seqs[-1] >= later.kept
            pairs += 1
    assert pairs > 10


def generation(image: Image) -> bytes:
    """The salts in the log's header, new whenever it begins anew (https://www.sqlite.org/walformat.html)."""
    return image.log.read_bytes()[16:24]


@pytest.mark.parametrize("damage", ["cut", "no tail", "torn page", "empty", "missing"])
def test_a_torn_log_loses_only_its_end(images: list[Image], tmp_path: Path, damage: str) -> None:
    random_ = random.Random(damage)
    torn = 0
    for image in images:
        # Until a checkpoint has begun, which is after a sync, any part of the log may be missing.
        frames = frames_of(image.log)
        if 0 < frames < _CHECKPOINT_AT:
            copy = copy_of(image, tmp_path)
            tear(copy.log, _LOG_HEADER + frames * _FRAME, damage, random_)
            expect_a_run(contents(copy.folder))
            torn += 1
    assert torn > 20


# https://www.sqlite.org/walformat.html
_LOG_HEADER = 32
_FRAME = 24 + 1024


def frames_of(log: Path) -> int:
    """How many pages the log holds. Those of earlier generations may follow in the same file."""
    content = log.read_bytes()
    found = 0
    for start in range(_LOG_HEADER, len(content) - _FRAME + 1, _FRAME):
        if content[start + 8 : start + 16] != content[16:24]:
            break
        found += 1
    return found


def tear(log: Path, end: int, damage: str, random_: random.Random) -> None:
    """Damage what is before `end`, where the log stops to count."""
    content = log.read_bytes()
    if damage == "cut":
        log.write_bytes(content[: random_.randrange(end)])
    elif damage == "no tail":
        log.write_bytes(content[: end - random_.choice([1, 24, 512, _FRAME])])
    elif damage == "torn page":
        # The newest pages reached the disk in part: a sector holds what was there before, or anything.
        start = end - random_.randrange(1, 4 * 512)
        log.write_bytes(content[:start] + random_.randbytes(512) + content[start + 512 :])
    elif damage == "empty":
        log.write_bytes(b"")
    else:
        log.unlink()


def copy_of(image: Image, folder: Path) -> Image:
    copied = folder / image.folder.name
    shutil.copytree(image.folder, copied)
    return Image(copied, image.kept)


def test_a_log_left_from_a_file_that_is_gone_harms_nothing(images: list[Image], tmp_path: Path) -> None:
    """As after a power cut in the moment in which a corrupt file was set aside."""
    copy = copy_of(images[-1], tmp_path)
    (copy.folder / "spool.db").unlink()
    assert contents(copy.folder) == []


def test_each_commit_is_synced(tmp_path: Path) -> None:
    spool = DiskSpool(tmp_path / "spool.db")
    assert spool._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert spool._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    spool.close()


def test_the_disk_is_told_to_sync_before_append_returns(tmp_path: Path) -> None:
    """In the system calls' order: the log is written, synced, and only then the number is told."""
    require("" if shutil.which("strace") else "strace not found; run: apt-get install strace")
    log = tmp_path / "calls"
    code = _WRITER.replace("while True", "while spool.last_seq < 20")
    command = ["strace", "-f", "-o", str(log), "-e", "trace=pwrite64,write,fsync,fdatasync", sys.executable]
    done = subprocess.run(
        [*command, "-c", code, str(tmp_path / "spool.db")],
        capture_output=True,
        check=False,
        text=True,
        env=clean_environ({}),
    )
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr[-200:]}")
    calls = [line.split(None, 1)[1] for line in log.read_text().splitlines()]
    unsynced, told = False, 0
    for call in calls:
        if call.startswith("pwrite64("):
            unsynced = True
        elif call.startswith(("fsync(", "fdatasync(")):
            unsynced = False
        elif call.startswith("write(1, "):
            assert not unsynced, f"report {told + 1} was told before it was synced"
            told += 1
    assert told == 20


def test_a_file_without_its_tables_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, statement in enumerate(
        ["DROP TABLE report", "DROP TABLE meta", "DELETE FROM meta", "UPDATE meta SET epoch = 'x'"], 1
    ):
        DiskSpool(tmp_path / "spool.db").close()
        with sqlite3.connect(tmp_path / "spool.db") as other:
            other.execute(statement)
        other.close()
        spool = DiskSpool(tmp_path / "spool.db")
        assert spool.append(0, LAYOUTS[0], (1.0,), ()) == 1
        spool.close()
        assert f"set aside as spool.db.corrupt-{number}" in caplog.text


def test_a_foreign_database_is_set_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "spool.db") as other:
        other.execute("CREATE TABLE report (x)")
    other.close()
    DiskSpool(tmp_path / "spool.db").close()
    assert (tmp_path / "spool.db.corrupt-1").exists()
