"""No report of a good host that is due goes missing from the figures."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from bench.flood import Schedule, Watch, latencies


@pytest.mark.parametrize("begin", [100.0, 100.003, 107.77])
def test_every_host_has_a_report_due_in_each_second(begin: float) -> None:
    schedule = Schedule(began_at=100.0, hosts=10)
    due = schedule.within(begin, begin + 1)
    assert {number % 10 for number in due} == set(range(10))
    assert all(begin <= schedule.due_at(number) < begin + 1 for number in due)


def test_nothing_is_due_before_the_schedule_begins() -> None:
    assert not Schedule(began_at=100.0, hosts=10).within(98.0, 99.0)


def test_a_report_that_is_acked_late_or_never_is_missing() -> None:
    assert latencies([20.0, 3000.1, 1e9, 10.0]) == {
        "due": 4,
        "missing": 2,
        "p50": 3000.1,
        "p99": 1e9,
        "worst": 1e9,
    }


def test_of_hosts_that_say_nothing_every_report_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.flood._TTL", 0.01)
    said = json.dumps({"began_at": 0.0, "hosts": 100}) + "\n"
    silent: Any = SimpleNamespace(stdout=io.StringIO(said))
    found = Watch(silent).window(0.1)
    assert found["due"] == found["missing"] >= 10
    assert found["worst"] == 1e9
