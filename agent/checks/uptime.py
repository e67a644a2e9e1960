"""How long the machine has been up, and when it booted."""

from __future__ import annotations

import time

from agent.checks import check
from fleetpulse.machine.uptime import parse
from fleetpulse.outcome import Values


@check("uptime")
def uptime() -> Values:
    """Seconds since boot, suspended time included, as /proc/uptime has it without reading a file."""
    return parse(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
