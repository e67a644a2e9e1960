from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.schedule import Schedule

DRAWS = st.floats(0, 1, exclude_max=True)
INTERVALS = st.floats(0.1, 3600)
STARTS = st.floats(0, 1e6)


@given(STARTS, INTERVALS, DRAWS, DRAWS, st.lists(DRAWS, min_size=1, max_size=50))
def test_one_tick_an_interval_without_drift(
    start: float, interval: float, first: float, phase: float, draws: list[float]
) -> None:
    schedule = Schedule.starting(start, interval, first, phase)
    assert start <= schedule.first <= start + min(interval, 2)
    due = schedule.next_due(schedule.first, draws[0])
    assert due - schedule.first >= 0.45 * interval
    for count, draw in enumerate(draws, 1):
        due = schedule.next_due(due, draw)
        # However often, a tick stays near its own place.
        assert abs(due - (schedule.anchor + count * interval)) <= 0.011 * interval


def test_rounds_that_were_missed_are_left_out() -> None:
    schedule = Schedule.starting(100.0, 10.0, 0.0, 0.5)
    assert schedule.anchor == 110.0
    assert schedule.next_due(175.0, 0.5) == 180.0


def test_agents_that_start_at_once_spread_over_the_interval() -> None:
    phases = [Schedule.starting(0.0, 10.0, 0.5, n / 100).anchor % 10 for n in range(100)]
    assert sorted(int(phase) for phase in phases) == sorted(list(range(10)) * 10)
