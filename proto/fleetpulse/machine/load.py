"""Load averages: how many threads run or wait to run, and on Linux those in uninterruptible sleep."""

from __future__ import annotations

from collections.abc import Sequence

from fleetpulse.model import Measurement
from fleetpulse.outcome import Values

_LOAD_1M = Measurement("system.cpu.load_average.1m", "{thread}")
_LOAD_5M = Measurement("system.cpu.load_average.5m", "{thread}")
_LOAD_15M = Measurement("system.cpu.load_average.15m", "{thread}")
# What a threshold for machines of any size can look at; hostmetrics calls the option cpu_average.
_PER_CPU_15M = Measurement("system.cpu.load_average.15m{cpu.average=true}", "{thread}")


def parse(averages: Sequence[float], cpus: int | None) -> Values:
    """The kernel's own averages over 1, 5 and 15 minutes, and the last one per CPU."""
    values = dict(zip((_LOAD_1M, _LOAD_5M, _LOAD_15M), averages, strict=True))
    return {**values, _PER_CPU_15M: averages[2] / (cpus or 1)}
