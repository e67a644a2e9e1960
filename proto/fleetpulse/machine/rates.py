"""Counters become rates: the change between two readings, divided by the time between them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

from fleetpulse.model import Measurement

_Name = TypeVar("_Name", bound=Hashable)


class CounterRates(Generic[_Name]):
    """Remembers the last reading of a set of counters."""

    def __init__(self) -> None:
        self._then = math.nan
        self._before: Mapping[_Name, float] = {}

    def update(self, now: float, counters: Mapping[_Name, float]) -> dict[_Name, float]:
        """Each counter's change per second. `now` is in monotonic seconds.

        NaN for a counter seen for the first time, for one that went backwards (it was reset or it
        wrapped: how far it came in between cannot be known), and when no time has passed.
        """
        before, elapsed = self._before, now - self._then
        self._before, self._then = counters, now
        if not elapsed > 0:
            return dict.fromkeys(counters, math.nan)
        return {
            name: (value - before[name]) / elapsed if name in before and value >= before[name] else math.nan
            for name, value in counters.items()
        }


class TableRates:
    """The same for many instances; one that was away starts from the beginning."""

    def __init__(self) -> None:
        self._rates: dict[str, CounterRates[Measurement]] = {}

    def update(
        self, now: float, table: Mapping[str, Mapping[Measurement, float]]
    ) -> dict[str, dict[Measurement, float]]:
        """Each instance's changes per second, as `CounterRates.update` has them."""
        known = self._rates
        self._rates = {instance: known.get(instance) or CounterRates() for instance in table}
        return {instance: self._rates[instance].update(now, counters) for instance, counters in table.items()}
