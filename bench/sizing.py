"""How large the machines have to be: tables computed from what the benchmarks measured.

    python -m bench.sizing [--results bench/results.json] [--utilisation 0.5] [--events 10] [--retention 365]

Takes no measurement of its own; `python -m bench` makes the file of results. A report costs the less the more of them
come, because a commit is shared by all that are waiting: between two rates that were measured, it is taken from a
straight line on logarithmic scales; outside, to stay as it is. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).with_name("results.json")
INTERVALS = (15, 30, 60)
FLEETS = (1_000, 10_000, 100_000)
_DAY = 86_400
_CHANGE = 0.01  # share of the reports that change a state
_PACES = ("at_1000_hosts", "at_10000_hosts")  # of bench.rows

Curve = tuple[tuple[float, float], ...]
"""Reports a second, ascending, and what one costs there; empty: not measured."""


class Costs(NamedTuple):
    """Of a report: CPU in microseconds, rows, bytes; and rows a second that are no report's. Of a stream: memory
    in kB, beside that of a collector without any in MB. Of an event: bytes. `disk_hosts` is of how many hosts the
    bytes written to the disk are."""

    collector_us: Curve
    database_us: Curve
    log_bytes: Curve = ()
    disk_bytes: Curve = ()
    rows: float | None = None
    rows_by_clock: float = 0.0
    stream_kb: float | None = None
    empty_mb: float = 0.0
    event_bytes: float | None = None
    disk_hosts: int = 0


class NotMeasured(Exception):
    """A figure without which there is no table."""


def costs(results: Mapping[str, Any]) -> Costs:
    """What of the results is needed. Raises NotMeasured."""
    variants = [row for row in results.get("ingest", {}).get("variants", ()) if row["change"] == _CHANGE]
    if not variants:
        raise NotMeasured(f"ingest, with a change in {_CHANGE:.0%} of the reports")
    best = min(variants, key=lambda row: row["collector_us"] + row["database_us"])
    rows = results.get("rows", {})
    paced = [rows[name] for name in _PACES if name in rows]
    fastest = [rows["one_percent"]] if "one_percent" in rows else []
    # At one rate from ever more hosts: what it costs from the most of them.
    rated = max(results["ingest"].get("rated", ()), key=lambda row: row["hosts"], default=None)
    busy = [best] if rated is None else [rated, best]
    return Costs(
        _curve(paced, "writer_us") + _curve(busy, "collector_us"),
        _curve([*paced, *busy], "database_us"),
        _curve([*paced, *fastest], "log_bytes"),
        _curve([*paced, *fastest], "disk_bytes"),
        max((row["rows"] for row in (*paced, *fastest)), default=None),
        max((row["rows_by_clock_per_s"] for row in paced), default=0.0),
        max(_in_herd(results, "stream_kb"), default=None),
        max(_in_herd(results, "empty_mb"), default=0.0),
        rows.get("event_bytes"),
        rows.get("hosts", 0),
    )


def _in_herd(results: Mapping[str, Any], figure: str) -> list[float]:
    """Before and after each return of the fleet."""
    herd = results.get("herd", {})
    return [row[figure] for row in (herd.get("first", {}), *herd.get("variants", ())) if figure in row]


def _curve(rows: Sequence[Mapping[str, float]], figure: str) -> Curve:
    return tuple((row["reports_per_s"], row[figure]) for row in rows)


def cost_at(curve: Curve, rate: float) -> float:
    """What a report costs where so many come in a second."""
    if rate <= curve[0][0]:
        return curve[0][1]
    for (low, before), (high, after) in pairwise(curve):
        if rate <= high:
            share = math.log(rate / low) / math.log(high / low)
            return float(before * (after / before) ** share)
    return curve[-1][1]


def cores(curve: Curve, rate: float) -> float:
    """How many cores so many reports a second keep busy, of a curve in microseconds."""
    return rate * cost_at(curve, rate) / 1e6


def rate_of_core(curve: Curve, utilisation: float) -> float:
    """Reports a second that keep one core busy to that share."""
    low, high = 0.0, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cores(curve, middle) < utilisation else (low, middle)
    return low


def event_disk(hosts: int, events: float, retention: float, event_bytes: float) -> float:
    """Bytes, from events a host and day that are kept for `retention` days."""
    return hosts * events * retention * event_bytes


def size(count: float) -> str:
    """Bytes in units of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def capacity_table(measured: Costs, utilisation: float) -> str:
    """Hosts a core, of the collector and of the database."""
    lines = [
        f"| hosts per core in use to {utilisation:.0%} | us a report | {' | '.join(f'every {s} s' for s in INTERVALS)} |",
        f"| --- | ---: |{' ---: |' * len(INTERVALS)}",
    ]
    for name, curve in (("collector", measured.collector_us), ("database", measured.database_us)):
        rate = rate_of_core(curve, utilisation)
        counts = [f"{round(rate * interval, -2):,.0f}" for interval in INTERVALS]
        lines.append(f"| {name} | {cost_at(curve, rate):.0f} | {' | '.join(counts)} |")
    return "\n".join(lines)


def fleet_table(measured: Costs, events: float, retention: float) -> str:
    """What fleets of some sizes take."""
    columns = (
        *("hosts", "every", "reports/s", "collector cores busy", "database cores busy", "collectors' memory"),
        *("rows a day", "redo log a day", "disk writes a day", "events on disk"),
    )
    lines = [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}"]
    lines += [
        f"| {' | '.join(_fleet_row(measured, hosts, interval, events, retention))} |"
        for hosts in FLEETS
        for interval in INTERVALS
    ]
    return "\n".join(lines)


def _fleet_row(
    measured: Costs, hosts: int, interval: float, events: float, retention: float
) -> tuple[str, ...]:
    rate = hosts / interval
    reports = rate * _DAY
    kept = measured.event_bytes
    return (
        f"{hosts:,}",
        f"{interval} s",
        f"{rate:.0f}",
        f"{cores(measured.collector_us, rate):.2f}",
        f"{cores(measured.database_us, rate):.2f}",
        "-"
        if measured.stream_kb is None
        else size(measured.empty_mb * 1e6 + measured.stream_kb * 1e3 * hosts),
        "-"
        if measured.rows is None
        else f"{(measured.rows * reports + measured.rows_by_clock * _DAY) / 1e6:,.1f} million",
        size(cost_at(measured.log_bytes, rate) * reports) if measured.log_bytes else "-",
        _disk_writes(measured, hosts, rate),
        "-" if kept is None else size(event_disk(hosts, events, retention, kept)),
    )


def _disk_writes(measured: Costs, hosts: int, rate: float) -> str:
    # A page is written once, however many of its rows have changed, so what was measured says nothing of
    # fleets with more rows.
    if not measured.disk_bytes or hosts > measured.disk_hosts:
        return "-"
    return size(cost_at(measured.disk_bytes, rate) * rate * _DAY)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--utilisation", type=float, default=0.5, help="share of a core that may be in use")
    parser.add_argument("--events", type=float, default=10, help="a host and day")
    parser.add_argument("--retention", type=float, default=365, help="days for which events are kept")
    options = parser.parse_args()
    try:
        measured = costs(json.loads(options.results.read_text(encoding="utf-8")))
    except FileNotFoundError:
        parser.exit(1, f"{options.results}: no such file; run: python -m bench\n")
    except NotMeasured as error:
        parser.exit(1, f"{options.results}: lacks {error}; run: python -m bench ingest\n")
    print(capacity_table(measured, options.utilisation))
    print(
        f"\n{_CHANGE:.0%} of the reports change something; {options.events:g} events a host and day, kept for "
        f"{options.retention:g} days. CPU without TLS, memory with it; python -m bench.ingest --tls has what TLS adds.\n"
    )
    print(fleet_table(measured, options.events, options.retention))


if __name__ == "__main__":
    main()
