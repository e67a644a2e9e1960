from __future__ import annotations

from pathlib import Path

import pytest

from agent.checks.uptime import uptime
from fleetpulse.machine.uptime import parse
from fleetpulse.model import Measurement

UPTIME = Measurement("system.uptime", "s")
BOOT_TIME = Measurement("system.boot_time", "s")


def test_boot_time_is_in_whole_seconds():
    assert parse(100.25, 1_700_000_100.5) == {UPTIME: 100.25, BOOT_TIME: 1_700_000_000.0}


def test_this_machine_agrees_with_proc():
    values = uptime()
    assert values[UPTIME] == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=2)
    btime = Path("/proc/stat").read_text().partition("\nbtime ")[2].split()[0]
    assert values[BOOT_TIME] == pytest.approx(float(btime), abs=2)
