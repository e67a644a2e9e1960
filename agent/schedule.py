"""When to measure: at a steady interval, out of step with every other agent. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_FIRST = 2.0  # seconds within which the first report of a started agent is due
_JITTER = 0.02  # share of the interval by which a single tick wanders


@dataclass(frozen=True, slots=True)
class Schedule:
    """The ticks of one agent, in seconds on the monotonic clock.

    The first tick comes soon after the start, so that a started agent shows up at once. Those that
    follow lie at a phase of their own: a thousand agents started in one second do not report in one.
    """

    first: float
    anchor: float
    interval: float

    @classmethod
    def starting(cls, now: float, interval: float, draw_first: float, draw_phase: float) -> Schedule:
        """A schedule from `now` on; the draws are random numbers, uniform in [0, 1)."""
        first = now + draw_first * min(interval, _MAX_FIRST)
        # At least half an interval after the first, so that the rates between the two mean something.
        return cls(first, first + (0.5 + draw_phase) * interval, interval)

    def next_due(self, now: float, draw: float) -> float:
        """The tick after the one that was due at or before `now`; `draw` is uniform in [0, 1).

        Ticks are counted from the anchor, so neither jitter nor a slow round adds up to a drift, and
        rounds missed (a suspended machine) are not made up for.
        """
        wander = (draw - 0.5) * _JITTER * self.interval
        if now < self.first:
            return self.first
        # Rounded, because a tick may have come a little before its place.
        passed = math.floor((now - self.anchor) / self.interval + _JITTER)
        return self.anchor + max(passed + 1, 0) * self.interval + wander
