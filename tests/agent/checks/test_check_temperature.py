from __future__ import annotations

from pathlib import Path

import pytest

from agent.checks import CheckOptions
from agent.checks.temperature import Temperature, parse
from fleetpulse.model import Measurement
from fleetpulse.outcome import NoData

TEMPERATURE = Measurement("hw.temperature", "Cel")


def test_an_instance_per_sensor():
    chips = {"coretemp": [("Package id 0", 61.0), ("Core 0", 58.0)], "acpitz": [("", 27.8)]}
    assert parse(chips) == {
        "acpitz": {TEMPERATURE: 27.8},
        "coretemp Package id 0": {TEMPERATURE: 61.0},
        "coretemp Core 0": {TEMPERATURE: 58.0},
    }


def test_sensors_of_the_same_name_are_told_apart():
    chips = {"nvme": [("Composite", 40.0), ("Composite", 55.0)]}
    assert parse(chips) == {"nvme Composite": {TEMPERATURE: 40.0}, "nvme Composite #2": {TEMPERATURE: 55.0}}


@pytest.mark.parametrize("chips", [{}, {"coretemp": []}])
def test_a_machine_without_sensors_has_no_such_check(chips):
    with pytest.raises(NoData):
        parse(chips)


def test_this_machine_agrees_with_sys():
    inputs = [*Path("/sys/class/hwmon").glob("hwmon*/temp*_input")]
    zones = [*Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    check = Temperature(CheckOptions())
    if not inputs and not zones:
        with pytest.raises(NoData):
            check.measure_all(0.0)
    else:
        readings = check.measure_all(0.0)
        assert all(-50 < values[TEMPERATURE] < 150 for values in readings.values())
