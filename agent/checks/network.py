"""What goes through every network interface."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from agent.checks import CheckOptions, TableCheck, check
from fleetpulse.machine.network import VIRTUAL, parse, select
from fleetpulse.machine.rates import TableRates
from fleetpulse.outcome import Values


class NetworkOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which interfaces are left out."""

    exclude: tuple[str, ...] = VIRTUAL
    """Patterns of interface names such as "eth0"."""


@check("network", NetworkOptions)
class Network(TableCheck):
    """An instance per interface."""

    def __init__(self, options: NetworkOptions) -> None:
        self._exclude = options.exclude
        self._rates = TableRates()

    def measure_all(self, now: float) -> Mapping[str, Values]:
        """Every interface's rates."""
        # nowrap would make psutil add up counters that went backwards instead of showing that.
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        names = select(counters, self._exclude)
        return self._rates.update(now, {name: parse(counters[name]._asdict()) for name in names})
