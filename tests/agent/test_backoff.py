from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.backoff import Backoff

DRAWS = st.floats(0, 1, exclude_max=True)
ELAPSED = st.floats(0, 1e9)


@given(ELAPSED, DRAWS, st.floats(0.001, 100), st.floats(100, 10_000))
def test_within_the_cap_and_the_time_that_things_went_wrong(
    elapsed: float, draw: float, base: float, cap: float
) -> None:
    delay = Backoff(base, cap).delay(elapsed, draw)
    assert 0 <= delay <= cap
    assert delay <= max(base, elapsed)


@given(ELAPSED, DRAWS)
def test_jitter_is_full(elapsed: float, draw: float) -> None:
    backoff = Backoff()
    assert backoff.delay(elapsed, 0.0) == 0.0
    assert backoff.delay(elapsed, draw) == draw * backoff.ceiling(elapsed)


def test_grows_with_the_outage_up_to_a_minute() -> None:
    assert [Backoff().ceiling(elapsed) for elapsed in (0, 0.5, 2, 30, 60, 3600)] == [1, 1, 2, 30, 60, 60]


def test_an_hour_of_outage_takes_few_tries_and_a_short_one_is_over_soon() -> None:
    draw = random.Random(7).random
    for outage, most_tries in ((5.0, 15), (3600.0, 200)):
        for _ in range(300):
            elapsed, tries = 0.0, 0
            while elapsed < outage:
                elapsed += Backoff().delay(elapsed, draw())
                tries += 1
            assert elapsed <= outage + min(outage, 60)
            assert tries <= most_tries
