"""Swap space, and how much moves in and out of it."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from agent.checks import CheckOptions, NoData, SingleCheck, check
from agent.checks.rates import CounterRates
from agent.outcome import Values
from fleetpulse.model import Measurement

_USED = Measurement("system.paging.usage{system.paging.state=used}", "By")
_FREE = Measurement("system.paging.usage{system.paging.state=free}", "By")
_UTILIZATION = Measurement("system.paging.utilization", "1")
_IN = Measurement("system.paging.operations{system.paging.direction=in}", "{operation}/s")
_OUT = Measurement("system.paging.operations{system.paging.direction=out}", "{operation}/s")
# psutil multiplies the kernel's count of pages with this, whatever the machine's page size is.
_PSUTIL_PAGE = 4096


@check("swap")
class Swap(SingleCheck):
    """A machine without swap has no such check."""

    def __init__(self, _options: CheckOptions) -> None:
        self._rates: CounterRates[Measurement] = CounterRates()

    def measure(self, now: float) -> Values:
        """Use of swap space, and pages moved per second."""
        fields = psutil.swap_memory()._asdict()
        return usage(fields) | self._rates.update(now, pages(fields))


def usage(fields: Mapping[str, float]) -> dict[Measurement, float]:
    """From the fields of psutil.swap_memory(), in bytes. Raises NoData if there is no swap."""
    if fields["total"] <= 0:
        raise NoData
    return {
        _USED: float(fields["used"]),
        _FREE: float(fields["free"]),
        _UTILIZATION: fields["used"] / fields["total"],
    }


def pages(fields: Mapping[str, float]) -> dict[Measurement, float]:
    """Counters of pages read from and written to swap since boot."""
    return {_IN: fields["sin"] / _PSUTIL_PAGE, _OUT: fields["sout"] / _PSUTIL_PAGE}
