"""How long the machine has been up, and when it booted."""

from __future__ import annotations

import time

from agent.checks import check
from agent.outcome import Values
from fleetpulse.model import Measurement

_UPTIME = Measurement("system.uptime", "s")
_BOOT_TIME = Measurement("system.boot_time", "s")


@check("uptime")
def uptime() -> Values:
    """Seconds since boot, suspended time included, as /proc/uptime has it without reading a file."""
    return parse(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def parse(since_boot: float, wall_clock: float) -> Values:
    """The boot time follows the wall clock when that is set, as `btime` in /proc/stat does.

    It is in whole seconds since the Unix epoch.
    """
    return {_UPTIME: since_boot, _BOOT_TIME: float(round(wall_clock - since_boot))}
