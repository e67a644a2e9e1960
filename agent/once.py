"""`fleet-agent once`: measure this machine and show what a report would say."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from agent.config import AgentConfig
from agent.measure import Measured, Measurer
from agent.terminal import escape
from agent.units import readable

RATE_INTERVAL = 1.0  # seconds between the two rounds that a rate needs


def measure_twice(config: AgentConfig) -> Measured:
    """The second of two rounds, so that rates have values."""
    measurer = Measurer(config.checks)
    measurer.measure(time.monotonic(), 0)
    time.sleep(RATE_INTERVAL)
    return measurer.measure(time.monotonic(), time.time_ns() // 1_000_000)


def as_json(measured: Measured) -> str:
    """The stable shape of `once --json`.

    {"measured_at": milliseconds since 1970, "checks": [{"name", "instance", "state", "message",
    "measurements": [{"name", "unit", "value"}]}]}. `state` is "OK", "WARNING", "CRITICAL" or "UNKNOWN"
    for a check with a state of its own, else null: then the collector's rules judge it. A missing value
    is null.
    """
    return json.dumps({"measured_at": measured.measured_at, "checks": _checks(measured)}, indent=2)


def as_table(measured: Measured) -> str:
    """Aligned columns: check, its own state if it has one, measurement, value."""
    rows: list[tuple[str, ...]] = [("CHECK", "STATE", "MEASUREMENT", "VALUE")]
    for check in _checks(measured):
        name = f"{check['name']} {check['instance']}".rstrip()
        state = check["state"] or ""
        if check["message"] or not check["measurements"]:
            rows.append((name, state, check["message"], ""))
        for m in check["measurements"]:
            value = math.nan if m["value"] is None else m["value"]
            rows.append((name, state, m["name"], readable(m["name"], m["unit"], value)))
    rows = [tuple(map(escape, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    )


def _checks(measured: Measured) -> list[dict[str, Any]]:
    results = {result.check: result for result in measured.results}
    values = iter(measured.values)
    checks = []
    for index, check in enumerate(measured.layout.checks):
        result = results.get(index)
        checks.append(
            {
                "name": check.key.name,
                "instance": check.key.instance,
                "state": result.state.name if result else None,
                "message": result.message if result else "",
                "measurements": [
                    {"name": m.name, "unit": m.unit, "value": None if math.isnan(value) else value}
                    # The layout's order is the values' order; what is left belongs to the next check.
                    for m, value in zip(check.measurements, values, strict=False)
                ],
            }
        )
    return checks
