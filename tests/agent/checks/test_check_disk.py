from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from agent.checks.disk import Disk, DiskOptions, is_physical
from fleetpulse.machine.disk import at_most_all_the_time, parse
from fleetpulse.model import Measurement

IO_TIME = Measurement("system.disk.io_time", "s/s")
READ = Measurement("system.disk.io{disk.io.direction=read}", "By/s")
WRITTEN = Measurement("system.disk.io{disk.io.direction=write}", "By/s")
READS = Measurement("system.disk.operations{disk.io.direction=read}", "{operation}/s")
WRITES = Measurement("system.disk.operations{disk.io.direction=write}", "{operation}/s")
CAPTURED = {"read_count": 10, "write_count": 20, "read_bytes": 5120, "write_bytes": 1024}
CAPTURED |= {"read_time": 70, "write_time": 80, "read_merged_count": 1, "write_merged_count": 2}
CAPTURED |= {"busy_time": 1500}


def test_counters_in_base_units():
    assert parse(CAPTURED) == {IO_TIME: 1.5, READ: 5120, WRITTEN: 1024, READS: 10, WRITES: 20}


@pytest.mark.parametrize(("rate", "shown"), [(1.004, 1.0), (0.25, 0.25), (0.0, 0.0)])
def test_a_disk_is_not_busier_than_always(rate, shown):
    assert at_most_all_the_time({IO_TIME: rate})[IO_TIME] == shown


def test_an_unknown_busy_time_stays_unknown():
    assert math.isnan(at_most_all_the_time({IO_TIME: math.nan})[IO_TIME])


def test_only_devices_with_hardware_behind_them(tmp_path):
    (tmp_path / "sda" / "device").mkdir(parents=True)
    (tmp_path / "cciss!c0d0" / "device").mkdir(parents=True)
    (tmp_path / "dm-0").mkdir()
    names = ("sda", "sda1", "cciss/c0d0", "dm-0", "loop0")
    assert [name for name in names if is_physical(tmp_path, name)] == ["sda", "cciss/c0d0"]


def test_this_machine_agrees_with_proc(tmp_path):
    disks = {path.name for path in Path("/sys/block").glob("*") if (path / "device").exists()}
    check = Disk(DiskOptions(exclude=()))
    start = sectors_written()
    first = check.measure_all(0.0)
    assert first.keys() == disks
    assert all(math.isnan(value) for values in first.values() for value in values.values())
    before = sectors_written()
    with (tmp_path / "data").open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
    after = sectors_written()
    second = check.measure_all(2.0)
    for disk in disks:
        rate = second[disk][WRITTEN]
        # Others may write as well: what the check saw lies between what was seen around it.
        assert (after[disk] - before[disk]) * 256 <= rate <= (sectors_written()[disk] - start[disk]) * 256
        assert 0 <= second[disk][IO_TIME] <= 1


def test_excluded_disks_are_left_out():
    assert Disk(DiskOptions(exclude=("*",))).measure_all(0.0) == {}


def sectors_written() -> dict[str, int]:
    lines = Path("/proc/diskstats").read_text().splitlines()
    return {line.split()[2]: int(line.split()[9]) for line in lines}
