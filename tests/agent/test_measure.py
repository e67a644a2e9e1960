"""The whole measuring side on this machine."""

from __future__ import annotations

import math
import os
import time

import msgspec
import pytest

from agent.checks import ChecksConfig
from agent.checks.processes import ProcessesOptions
from agent.measure import Measurer
from fleetpulse.convert import decode_layout, encode_layout
from fleetpulse.model import CheckKey, Measurement


def test_two_rounds_on_this_machine():
    measurer = Measurer(ChecksConfig())
    first = measurer.measure(time.monotonic(), 1_700_000_000_000)
    second = measurer.measure(time.monotonic() + 15, 1_700_000_015_000)
    assert second.measured_at == 1_700_000_015_000
    assert second.layout is first.layout
    assert len(second.values) == second.layout.series_count >= 35
    assert first.results == second.results == ()
    assert decode_layout(encode_layout(second.layout).layout) == second.layout
    values = dict(zip(second.layout.series, second.values, strict=True))
    assert values[CheckKey("filesystem", "/"), Measurement("system.filesystem.utilization", "1")] <= 1
    assert values[CheckKey("cpu"), Measurement("system.cpu.logical.count", "{cpu}")] == os.cpu_count()
    assert not [s for s, value in values.items() if math.isnan(value) and s[0].name != "cpu"]
    assert {"cpu", "filesystem", "processes", "temperature"} <= second.durations.keys()


def test_counters_have_no_rate_in_the_first_report():
    first = Measurer(ChecksConfig()).measure(time.monotonic(), 0)
    rates = [
        (s, v) for s, v in zip(first.layout.series, first.values, strict=True) if s[1].unit.endswith("/s")
    ]
    assert rates
    assert all(math.isnan(value) for _, value in rates)


def test_disabled_checks_are_not_in_the_layout():
    measured = Measurer(ChecksConfig(disabled=("cpu", "processes"))).measure(time.monotonic(), 0)
    assert not {"cpu", "processes"} & {check.key.name for check in measured.layout.checks}


def test_two_measurers_of_one_machine_have_the_same_layout():
    one, other = (Measurer(ChecksConfig()).measure(time.monotonic(), 0) for _ in range(2))
    assert one.layout.id == other.layout.id


def test_stop_makes_rounds_end_at_once():
    measurer = Measurer(ChecksConfig())
    measurer.stop()
    measured = measurer.measure(time.monotonic(), 0)
    assert {result.message for result in measured.results} == {"not started before the round ended"}


@pytest.mark.parametrize("processes", [ProcessesOptions(), ProcessesOptions(max_reads=10)])
def test_a_round_is_cheap(processes):
    """The whole agent has 15 ms of CPU time for each of four reports a minute."""
    measurer = Measurer(msgspec.structs.replace(ChecksConfig(), processes=processes))
    measurer.measure(time.monotonic(), 0)
    rounds = 10
    before = time.process_time()
    for _ in range(rounds):
        measurer.measure(time.monotonic(), 0)
    assert (time.process_time() - before) / rounds < 0.015
