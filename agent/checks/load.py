"""Load averages: how many threads run or wait to run, and on Linux those in uninterruptible sleep."""

from __future__ import annotations

import os

from agent.checks import check
from fleetpulse.machine.load import parse
from fleetpulse.outcome import Values


@check("load")
def load() -> Values:
    """The kernel's own averages over 1, 5 and 15 minutes, and the last one per CPU."""
    return parse(os.getloadavg(), os.cpu_count())
