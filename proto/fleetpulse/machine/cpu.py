"""How the CPUs spend their time, all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fleetpulse.model import Measurement
from fleetpulse.outcome import Values

_COUNT = Measurement("system.cpu.logical.count", "{cpu}")
_BUSY = Measurement("system.cpu.utilization", "1")
# OpenTelemetry's modes and the fields of `man 5 proc_stat` in them. Time in guests is part of user
# and nice already.
_MODES: Mapping[str, tuple[str, ...]] = {
    "user": ("user",),
    "nice": ("nice",),
    "system": ("system",),
    "interrupt": ("irq", "softirq"),
    "steal": ("steal",),
    "iowait": ("iowait",),
    "idle": ("idle",),
}
# A CPU that waits for I/O is free for other work, so neither of these counts as busy.
_NOT_BUSY = ("iowait", "idle")
_SHARES = {
    mode: Measurement(f"system.cpu.utilization{{cpu.mode={mode}}}", "1") for mode in _MODES if mode != "idle"
}


def count(cpus: int | None) -> Values:
    """The number of CPUs that are online; NaN if it is not known."""
    return {_COUNT: float(cpus or math.nan)}


def seconds_by_mode(times: Mapping[str, float]) -> dict[str, float]:
    """The fields of psutil.cpu_times(), in seconds since boot, as OpenTelemetry's modes."""
    return {mode: sum(times.get(field, 0.0) for field in fields) for mode, fields in _MODES.items()}


def shares(before: Mapping[str, float] | None, after: Mapping[str, float]) -> dict[Measurement, float]:
    """Utilization, whole and by mode; NaN at first and when no time has been counted.

    The kernel says that idle and iowait may shrink (Documentation/filesystems/proc.rst): no time
    passed in them then. If another one shrinks, the counters were reset and nothing is known.
    """
    spent = {mode: after[mode] - before[mode] for mode in _MODES} if before is not None else {}
    was_reset = any(seconds < 0 for mode, seconds in spent.items() if mode not in _NOT_BUSY)
    spent = {mode: max(0.0, seconds) for mode, seconds in spent.items()}
    total = sum(spent.values())
    if was_reset or total <= 0:
        return dict.fromkeys((_BUSY, *_SHARES.values()), math.nan)
    values = {measurement: spent[mode] / total for mode, measurement in _SHARES.items()}
    values[_BUSY] = 1 - sum(spent[mode] for mode in _NOT_BUSY) / total
    return values
