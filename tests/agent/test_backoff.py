from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.backoff import Backoff

DRAWS = st.floats(0, 1, exclude_max=True)
ATTEMPTS = st.integers(0, 10**9)


@given(ATTEMPTS, DRAWS, st.floats(0.001, 100), st.floats(0.001, 10_000))
def test_within_the_cap_and_the_doubling_base(attempt: int, draw: float, base: float, cap: float) -> None:
    delay = Backoff(base, cap).delay(attempt, draw)
    assert 0 <= delay <= cap
    assert delay <= base * 2.0 ** min(attempt, 64)


@given(ATTEMPTS, DRAWS)
def test_jitter_is_full(attempt: int, draw: float) -> None:
    backoff = Backoff()
    assert backoff.delay(attempt, 0.0) == 0.0
    assert backoff.delay(attempt, draw) == draw * backoff.ceiling(attempt)


def test_doubles_up_to_a_minute() -> None:
    assert [Backoff().ceiling(attempt) for attempt in (0, 1, 2, 5, 6, 7, 5000)] == [1, 2, 4, 32, 60, 60, 60]
