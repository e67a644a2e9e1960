from __future__ import annotations

import math
from pathlib import Path

import pytest

from agent.checks import CheckOptions
from agent.checks.swap import Swap
from fleetpulse.machine.swap import pages, usage
from fleetpulse.model import Measurement
from fleetpulse.outcome import NoData

USED = Measurement("system.paging.usage{system.paging.state=used}", "By")
FREE = Measurement("system.paging.usage{system.paging.state=free}", "By")
UTILIZATION = Measurement("system.paging.utilization", "1")
IN = Measurement("system.paging.operations{system.paging.direction=in}", "{operation}/s")
OUT = Measurement("system.paging.operations{system.paging.direction=out}", "{operation}/s")


def test_usage():
    assert usage(total=8000, used=2000, free=6000) == {USED: 2000, FREE: 6000, UTILIZATION: 0.25}


def test_counters_are_in_pages():
    assert pages(10, 2) == {IN: 10, OUT: 2}


def test_a_machine_without_swap_has_no_such_check():
    with pytest.raises(NoData):
        usage(0, 0, 0)


def test_this_machine_agrees_with_proc():
    proc = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(proc["SwapTotal"].split()[0]) * 1024
    swap = Swap(CheckOptions())
    if not total:
        with pytest.raises(NoData):
            swap.measure(0.0)
        return
    first = swap.measure(0.0)
    assert first[USED] + first[FREE] == total
    assert math.isnan(first[IN])
    assert swap.measure(1.0)[OUT] >= 0
