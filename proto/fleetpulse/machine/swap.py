"""Swap space, and how much moves in and out of it."""

from __future__ import annotations

from fleetpulse.model import Measurement
from fleetpulse.outcome import NoData

_USED = Measurement("system.paging.usage{system.paging.state=used}", "By")
_FREE = Measurement("system.paging.usage{system.paging.state=free}", "By")
_UTILIZATION = Measurement("system.paging.utilization", "1")
_IN = Measurement("system.paging.operations{system.paging.direction=in}", "{operation}/s")
_OUT = Measurement("system.paging.operations{system.paging.direction=out}", "{operation}/s")


def usage(total: float, used: float, free: float) -> dict[Measurement, float]:
    """From bytes of swap space. Raises NoData if there is none."""
    if total <= 0:
        raise NoData
    return {_USED: float(used), _FREE: float(free), _UTILIZATION: used / total}


def pages(pages_in: float, pages_out: float) -> dict[Measurement, float]:
    """Counters of pages read from and written to swap since boot."""
    return {_IN: pages_in, _OUT: pages_out}
