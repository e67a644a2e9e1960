"""Main memory."""

from __future__ import annotations

import psutil

from agent.checks import check
from fleetpulse.machine.memory import parse
from fleetpulse.outcome import Values


@check("memory")
def memory() -> Values:
    """Memory by state."""
    return parse(psutil.virtual_memory()._asdict())
