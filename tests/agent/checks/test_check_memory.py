from __future__ import annotations

import math
from pathlib import Path

import pytest

from agent.checks.memory import memory
from fleetpulse.machine.memory import parse
from fleetpulse.model import Measurement

LIMIT = Measurement("system.memory.limit", "By")
AVAILABLE = Measurement("system.memory.linux.available", "By")
UTILIZATION = Measurement("system.memory.utilization", "1")


def used(state: str) -> Measurement:
    return Measurement(f"system.memory.usage{{system.memory.state={state}}}", "By")


def test_used_is_what_is_not_available():
    fields = {"total": 1000, "available": 600, "free": 100, "buffers": 50, "cached": 400, "used": 450}
    assert parse(fields) == {
        LIMIT: 1000,
        AVAILABLE: 600,
        UTILIZATION: 0.4,
        used("used"): 400,
        used("free"): 100,
        used("buffers"): 50,
        used("cached"): 400,
    }


def test_no_total_is_no_division():
    fields = dict.fromkeys(("total", "available", "free", "buffers", "cached"), 0)
    assert math.isnan(parse(fields)[UTILIZATION])


def test_this_machine_agrees_with_proc():
    lines = Path("/proc/meminfo").read_text().splitlines()
    proc = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    values = memory()
    total = proc["MemTotal"]
    assert values[LIMIT] == total
    assert values[AVAILABLE] == pytest.approx(proc["MemAvailable"], abs=total * 0.05)
    assert values[used("free")] == pytest.approx(proc["MemFree"], abs=total * 0.05)
    assert values[UTILIZATION] == pytest.approx(1 - proc["MemAvailable"] / total, abs=0.05)
