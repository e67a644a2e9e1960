"""How long the machine has been up, and when it booted."""

from __future__ import annotations

from fleetpulse.model import Measurement
from fleetpulse.outcome import Values

_UPTIME = Measurement("system.uptime", "s")
_BOOT_TIME = Measurement("system.boot_time", "s")


def parse(since_boot: float, wall_clock: float) -> Values:
    """From both clocks, in seconds: since boot with suspended time, and since the Unix epoch.

    The boot time follows the wall clock when that is set, as `btime` in /proc/stat does.
    """
    return values(since_boot, round(wall_clock - since_boot))


def values(since_boot: float, boot_time: float) -> Values:
    """`boot_time` is in whole seconds since the Unix epoch."""
    return {_UPTIME: since_boot, _BOOT_TIME: float(boot_time)}
