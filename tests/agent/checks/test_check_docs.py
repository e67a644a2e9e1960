"""docs/checks.md names every check, measurement and option that exists, and no other."""

from __future__ import annotations

import re
import time
from pathlib import Path

from agent.checks import ChecksConfig, check_names
from agent.measure import Measurer
from fleetpulse.config import leaves

DOCS = Path(__file__).parents[3] / "docs" / "checks.md"


def rows(header: str) -> list[list[str]]:
    table = DOCS.read_text().partition(f"| {header} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def test_every_check_has_a_row():
    assert [row[0].strip("`") for row in rows("check")] == check_names()


def test_every_measurement_of_this_machine_is_in_its_row():
    documented = {row[0].strip("`"): row[2] for row in rows("check")}
    measured = Measurer(ChecksConfig()).measure(time.monotonic(), 0)
    for key, measurement in measured.layout.series:
        name = re.sub(r"=\w+}", "=…}", measurement.name)
        assert f"`{name}`" in documented[key.name]
        assert f"({measurement.unit}" in documented[key.name]
        for value in re.findall(r"=(\w+)}", measurement.name):
            assert f"`{value}`" in documented[key.name]


def test_every_option_is_in_the_tables_and_the_other_way_round():
    exist = {".".join(path) for path, _ in leaves(ChecksConfig)}
    in_rows = {
        f"{row[0].strip('`')}.{option}" for row in rows("check") for option in re.findall(r"`(\w+)`", row[3])
    }
    assert in_rows == {key for key in exist if "." in key}
    described = {row[0].strip("`").removeprefix("checks.") for row in rows("key")}
    assert described - {"NAME.timeout"} == {key for key in exist if not re.search(r"\.timeout$", key)}
