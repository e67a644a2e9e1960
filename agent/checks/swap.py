"""Swap space, and how much moves in and out of it."""

from __future__ import annotations

import psutil

from agent.checks import CheckOptions, SingleCheck, check
from fleetpulse.machine.rates import CounterRates
from fleetpulse.machine.swap import pages, usage
from fleetpulse.model import Measurement
from fleetpulse.outcome import Values

# psutil multiplies the kernel's count of pages with this, whatever the machine's page size is.
_PSUTIL_PAGE = 4096


@check("swap")
class Swap(SingleCheck):
    """A machine without swap has no such check."""

    def __init__(self, _options: CheckOptions) -> None:
        self._rates: CounterRates[Measurement] = CounterRates()

    def measure(self, now: float) -> Values:
        """Use of swap space, and pages moved per second."""
        swap = psutil.swap_memory()
        moved = pages(swap.sin / _PSUTIL_PAGE, swap.sout / _PSUTIL_PAGE)
        return usage(swap.total, swap.used, swap.free) | self._rates.update(now, moved)
