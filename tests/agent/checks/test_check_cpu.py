from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from agent.checks import CheckOptions
from agent.checks.cpu import Cpu
from fleetpulse.machine.cpu import seconds_by_mode, shares
from fleetpulse.model import Measurement

BUSY = Measurement("system.cpu.utilization", "1")
# Guest time is counted in user already: man 5 proc_stat.
CAPTURED = {"user": 100.0, "nice": 2.0, "system": 50.0, "idle": 800.0, "iowait": 40.0, "irq": 3.0}
CAPTURED |= {"softirq": 5.0, "steal": 0.0, "guest": 90.0, "guest_nice": 1.0}


def mode(name: str) -> Measurement:
    return Measurement(f"system.cpu.utilization{{cpu.mode={name}}}", "1")


def later(**change: float) -> dict[str, float]:
    return CAPTURED | {field: CAPTURED[field] + seconds for field, seconds in change.items()}


def between(**change: float) -> dict[Measurement, float]:
    return shares(seconds_by_mode(CAPTURED), seconds_by_mode(later(**change)))


def test_modes_count_everything_once():
    expected = {"user": 100, "nice": 2, "system": 50, "idle": 800, "iowait": 40, "interrupt": 8, "steal": 0}
    assert seconds_by_mode(CAPTURED) == expected


def test_shares_of_the_time_between():
    values = between(user=2.0, system=1.0, irq=0.5, softirq=0.5, iowait=1.0, idle=5.0, guest=2.0)
    assert values[BUSY] == pytest.approx(0.4)
    assert values[mode("user")] == pytest.approx(0.2)
    assert values[mode("system")] == pytest.approx(0.1)
    assert values[mode("interrupt")] == pytest.approx(0.1)
    assert values[mode("iowait")] == pytest.approx(0.1)
    busy_modes = ("user", "nice", "system", "interrupt", "steal")
    assert sum(values[mode(name)] for name in busy_modes) == pytest.approx(values[BUSY])


def test_waiting_for_io_is_not_busy():
    assert between(iowait=10.0)[BUSY] == 0


def test_iowait_may_shrink():
    values = between(user=1.0, iowait=-0.5, idle=3.0)
    assert values[BUSY] == pytest.approx(0.25)
    assert values[mode("iowait")] == 0


@pytest.mark.parametrize("change", [{"user": -1.0, "idle": 5.0}, {}, {"idle": -5.0}])
def test_nothing_is_known_after_a_reset_or_without_time(change):
    assert all(math.isnan(value) for value in between(**change).values())


def test_this_machine_agrees_with_proc():
    """The machine is kept busy, so that a wrong share would show."""
    check = Cpu(CheckOptions())
    first = check.measure(0.0)
    assert math.isnan(first[BUSY])
    assert first[Measurement("system.cpu.logical.count", "{cpu}")] == os.cpu_count()
    before = ticks()
    while sum(ticks()) - sum(before) < 40:
        pass
    values = check.measure(1.0)
    after = ticks()
    spent = [b - a for a, b in zip(before, after, strict=True)]
    busy = 1 - (spent[3] + spent[4]) / sum(spent)
    assert values[BUSY] == pytest.approx(busy, abs=0.15)
    assert values[BUSY] > 0.2


def ticks() -> list[int]:
    """user nice system idle iowait irq softirq steal of /proc/stat."""
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
