"""Main memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fleetpulse.model import Measurement
from fleetpulse.outcome import Values

_LIMIT = Measurement("system.memory.limit", "By")
_AVAILABLE = Measurement("system.memory.linux.available", "By")
_UTILIZATION = Measurement("system.memory.utilization", "1")
_USED = Measurement("system.memory.usage{system.memory.state=used}", "By")
_STATES = {
    state: Measurement(f"system.memory.usage{{system.memory.state={state}}}", "By")
    for state in ("free", "buffers", "cached")
}


def parse(fields: Mapping[str, float]) -> Values:
    """The fields of psutil.virtual_memory(), in bytes.

    Used is what is not available to new programs without swapping, as OpenTelemetry defines the
    state: what caches hold and would give back is not in it.
    """
    total, available = fields["total"], fields["available"]
    return {
        _LIMIT: float(total),
        _AVAILABLE: float(available),
        _UTILIZATION: 1 - available / total if total > 0 else math.nan,
        _USED: float(total - available),
    } | {measurement: float(fields[state]) for state, measurement in _STATES.items()}
