"""How large the machines have to be: a table computed from what the benchmarks measured.

    python -m bench.sizing [--results bench/results.json] [--utilisation 0.5] [--events 10] [--retention 365]

Takes no measurement of its own; `python -m bench` makes the file of results. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).with_name("results.json")
INTERVALS = (15, 30, 60)
FLEETS = (1_000, 10_000, 100_000)
_DAY = 86_400
_CHANGE = 0.01  # share of the reports that change a state


class Costs(NamedTuple):
    """What was measured: CPU in microseconds a report, memory in kB a stream, bytes and rows a report, bytes an
    event. None: not measured."""

    collector_us: float
    database_us: float
    stream_kb: float | None = None
    rows: float | None = None
    log_bytes: float | None = None
    data_bytes: float | None = None
    event_bytes: float | None = None


class NotMeasured(Exception):
    """A figure without which there is no table."""


def costs(results: Mapping[str, Any]) -> Costs:
    """What of the results is needed. Raises NotMeasured."""
    variants = [row for row in results.get("ingest", {}).get("variants", ()) if row["change"] == _CHANGE]
    if not variants:
        raise NotMeasured(f"ingest, with a change in {_CHANGE:.0%} of the reports")
    best = min(variants, key=lambda row: row["collector_us"] + row["database_us"])
    rows = results.get("rows", {})
    # At the pace of a fleet batches are small, and bytes a report more: those are what a disk gets.
    paced = rows.get("paced", {})
    return Costs(
        best["collector_us"],
        best["database_us"],
        next(find(results.get("herd", {}), "kb_per_stream"), None),
        paced.get("rows"),
        paced.get("log_bytes"),
        paced.get("data_bytes"),
        rows.get("event_bytes"),
    )


def find(results: object, key: str) -> Iterator[float]:
    """Every number under this key, however deep, from the outermost on."""
    if isinstance(results, Mapping):
        if isinstance(results.get(key), (int, float)):
            yield results[key]
        inner: Sequence[object] = list(results.values())
    elif isinstance(results, list):
        inner = results
    else:
        return
    for one in inner:
        yield from find(one, key)


def hosts_per_core(microseconds: float, interval: float, utilisation: float) -> int:
    """How many hosts that report every `interval` seconds one core serves when it is in use to that share."""
    return int(utilisation * interval * 1e6 / microseconds)


def cores(hosts: int, microseconds: float, interval: float, utilisation: float) -> float:
    """How many cores so many hosts take at that share."""
    return hosts / interval * microseconds / 1e6 / utilisation


def reports_a_day(hosts: int, interval: float) -> float:
    """Of all hosts."""
    return hosts * _DAY / interval


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
        f"| hosts per core at {utilisation:.0%} | {' | '.join(f'every {s} s' for s in INTERVALS)} |",
        f"| --- |{' ---: |' * len(INTERVALS)}",
    ]
    for name, microseconds in (("collector", measured.collector_us), ("database", measured.database_us)):
        counts = [f"{hosts_per_core(microseconds, interval, utilisation):,}" for interval in INTERVALS]
        lines.append(f"| {name} ({microseconds:.0f} us a report) | {' | '.join(counts)} |")
    return "\n".join(lines)


def fleet_table(measured: Costs, utilisation: float, events: float, retention: float) -> str:
    """What fleets of some sizes take."""
    columns = (
        *("hosts", "every", "reports/s", "collector cores", "database cores", "memory of the streams"),
        *("rows written a day", "redo log a day", "data files a day", "events on disk"),
    )
    lines = [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}"]
    for hosts in FLEETS:
        for interval in INTERVALS:
            reports = reports_a_day(hosts, interval)
            on_disk = (
                None
                if measured.event_bytes is None
                else event_disk(hosts, events, retention, measured.event_bytes)
            )
            cells = (
                f"{hosts:,}",
                f"{interval} s",
                f"{hosts / interval:.0f}",
                f"{cores(hosts, measured.collector_us, interval, utilisation):.2f}",
                f"{cores(hosts, measured.database_us, interval, utilisation):.2f}",
                _size_of(measured.stream_kb, hosts * 1000),
                "-" if measured.rows is None else f"{measured.rows * reports / 1e6:,.1f} million",
                _size_of(measured.log_bytes, reports),
                _size_of(measured.data_bytes, reports),
                "-" if on_disk is None else size(on_disk),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size_of(each: float | None, count: float) -> str:
    return "-" if each is None else size(each * count)


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
        f"{options.retention:g} days; bytes are those of batches at a fleet's pace.\n"
    )
    print(fleet_table(measured, options.utilisation, options.events, options.retention))


if __name__ == "__main__":
    main()
