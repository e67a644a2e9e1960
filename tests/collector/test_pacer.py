"""How often somebody may do something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.core import pacer
from collector.core.pacer import Pacer


def test_a_rested_host_may_send_a_burst_and_then_goes_at_its_pace() -> None:
    paces = Pacer(rate=100, burst=1000)
    assert paces.spend("host", 1000, now=5.0) == 0
    assert paces.spend("host", 200, now=5.0) == 2.0
    assert paces.spend("host", 1, now=7.0) == pytest.approx(0.01)
    assert paces.spend("host", 1000, now=1000.0) == 0


def test_one_host_does_not_slow_another_down() -> None:
    paces = Pacer(rate=1, burst=1)
    assert paces.spend("flood", 100, now=0.0) == 99.0
    assert paces.spend("good", 1, now=0.0) == 0


def test_what_is_refused_costs_nothing() -> None:
    paces = Pacer(rate=0.2, burst=2)
    assert [paces.try_spend("host", 1, now=0.0) for _ in range(4)] == [True, True, False, False]
    assert not paces.try_spend("host", 1, now=4.9)
    assert paces.try_spend("host", 1, now=5.0)


def test_who_was_not_heard_of_for_long_is_forgotten_first(monkeypatch) -> None:
    monkeypatch.setattr(pacer, "_REMEMBERED", 2)
    paces = Pacer(rate=1, burst=1)
    for name in ("a", "b", "a", "c"):
        paces.spend(name, 1, now=0.0)
    assert not paces.try_spend("a", 1, now=0.0)
    assert not paces.try_spend("c", 1, now=0.0)
    assert paces.try_spend("b", 1, now=0.0)


STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), min_size=1, max_size=40)


@given(STEPS)
def test_who_waits_as_told_never_exceeds_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    paces = Pacer(rate=10, burst=30)
    now = spent = 0.0
    for rest, amount in steps:
        now += rest
        spent += amount
        now += paces.spend("host", amount, now)
        assert spent <= 30 + 10 * now + 1e-6


@given(STEPS)
def test_trying_never_exceeds_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    paces = Pacer(rate=10, burst=30)
    now = spent = 0.0
    for rest, amount in steps:
        now += rest
        spent += amount if paces.try_spend("host", amount, now) else 0
        assert spent <= 30 + 10 * now + 1e-6
