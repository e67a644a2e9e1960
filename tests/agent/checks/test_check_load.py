from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.checks.load import load
from fleetpulse.model import Measurement


def test_this_machine_agrees_with_proc():
    for _ in range(3):  # the kernel may compute new averages between two readings
        before = Path("/proc/loadavg").read_text()
        values = load()
        if Path("/proc/loadavg").read_text().split()[:3] == before.split()[:3]:
            break
    expected = [float(field) for field in before.split()[:3]]
    names = [f"system.cpu.load_average.{minutes}m" for minutes in (1, 5, 15)]
    per_cpu = values.pop(Measurement("system.cpu.load_average.15m{cpu.average=true}", "{thread}"))
    assert per_cpu == pytest.approx(expected[2] / (os.cpu_count() or 1), abs=0.01)
    assert list(values) == [Measurement(name, "{thread}") for name in names]
    assert list(values.values()) == pytest.approx(expected, abs=0.01)
