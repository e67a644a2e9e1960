"""How large the machines have to be: tables computed from what the benchmarks measured.

    python -m bench.sizing [--results bench/results.json] [--utilisation 0.5] [--change 0.01] [--retention 365]

Takes no measurement of its own; `python -m bench` makes the file of results. A fleet has as many collector processes as
its streams need, and a process is taken to cost what one did that was measured at its rate: a report costs the less the
more of them come to one process, because a commit is shared by all that are waiting there. Between two rates that were
measured a cost is taken from a straight line on logarithmic scales; beyond them only bounds are given. Quick results
are refused. Prints markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.costs import CHANGE, SOURCES, STREAMS, Costs, Curve, NotMeasured, costs, per_second
from collector.config import Config

RESULTS = Path(__file__).with_name("results.json")
INTERVALS = (15, 30, 60)
FLEETS = (1_000, 10_000, 100_000)
RETENTION = Config().event_retention.milliseconds / 86_400_000  # days
_DAY = 86_400
_SAME = 0.95  # of a rate is as good as the rate


class Fleet(NamedTuple):
    """Hosts that report every `interval` seconds, in as many collector processes as their streams need."""

    hosts: int
    interval: float

    @property
    def collectors(self) -> int:
        """How many processes, none of more streams than were measured of one."""
        return math.ceil(self.hosts / STREAMS)

    @property
    def reports(self) -> float:
        """Reports a second of all."""
        return self.hosts / self.interval

    @property
    def rate(self) -> float:
        """Reports a second of one process."""
        return self.reports / self.collectors

    def per_second(self, curve: Curve) -> float:
        """What all reports of a second cost: of so many processes, each with commits of its own."""
        return self.collectors * per_second(curve, self.rate)


def memory(measured: Costs, fleet: Fleet) -> float:
    """Bytes of all collector processes."""
    return measured.empty_mb * 1e6 * fleet.collectors + measured.stream_kb * 1e3 * fleet.hosts


def row_writes(measured: Costs, fleet: Fleet, change: float) -> float:
    """Rows written in a day, of whose reports that share changes something."""
    each = measured.rows + measured.rows_per_change * change
    return (each * fleet.reports + measured.rows_by_clock * fleet.collectors) * _DAY


def events(measured: Costs, fleet: Fleet, change: float) -> float:
    """Events of a day."""
    return fleet.reports * _DAY * change * measured.events_per_change


def size(count: float) -> str:
    """Bytes in units of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def capacity_table(measured: Costs, utilisation: float) -> str:
    """Hosts of a collector process, and of a core in use to that share."""
    used = f"in use to {utilisation:.0%}"
    rows = {
        "a collector process": [process_hosts(measured, each) for each in INTERVALS],
        f"a core of collectors, {used}": [collector_hosts(measured, each, utilisation) for each in INTERVALS],
        f"a core of the database, {used}": [
            database_hosts(measured, each, utilisation) for each in INTERVALS
        ],
    }
    lines = [
        f"| hosts on | {' | '.join(f'every {interval} s' for interval in INTERVALS)} |",
        f"| --- |{' ---: |' * len(INTERVALS)}",
    ]
    lines += [f"| {name} | {' | '.join(map(str, cells))} |" for name, cells in rows.items()]
    return "\n".join(lines)


class Capacity(NamedTuple):
    """How many hosts; if `bounded`, as many as were measured, and there may be room for more."""

    hosts: float
    bounded: bool = False

    def __str__(self) -> str:
        return f"{'≥ ' if self.bounded else ''}{math.floor(self.hosts / 100) * 100:,}"


def process_hosts(measured: Costs, interval: float) -> Capacity:
    """Of a collector process: no more streams and no higher rate than one was measured with."""
    return _as_measured(STREAMS, measured.collector_us, interval)


def collector_hosts(measured: Costs, interval: float, utilisation: float) -> Capacity:
    """Of a core of collectors, in processes that have as many hosts as they can."""
    return Capacity(_core_hosts(measured, measured.collector_us, interval, utilisation))


def database_hosts(measured: Costs, interval: float, utilisation: float) -> Capacity:
    """Of a core of the database; all processes together at no higher rate than it was measured with."""
    hosts = _core_hosts(measured, measured.database_us, interval, utilisation)
    return _as_measured(hosts, measured.database_us, interval)


def _core_hosts(measured: Costs, curve: Curve, interval: float, utilisation: float) -> float:
    process = process_hosts(measured, interval).hosts
    return utilisation * process / (per_second(curve, process / interval) / 1e6)


def _as_measured(hosts: float, curve: Curve, interval: float) -> Capacity:
    most = curve[-1][0] * interval
    return Capacity(min(hosts, most), bounded=hosts > most)


def fleet_table(measured: Costs, change: float, retention: float) -> str:
    """What fleets of some sizes take."""
    columns = (
        *("hosts", "every", "reports/s", "collectors", "collector cores busy", "database cores busy"),
        *(
            "collectors' memory",
            "row writes a day",
            "redo log a day",
            "events a host and day",
            "events on disk",
        ),
    )
    lines = [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}"]
    lines += [
        f"| {' | '.join(fleet_row(measured, Fleet(hosts, interval), change, retention))} |"
        for hosts in FLEETS
        for interval in INTERVALS
    ]
    return "\n".join(lines)


def fleet_row(measured: Costs, fleet: Fleet, change: float, retention: float) -> tuple[str, ...]:
    """The cells; `retention` in days."""
    log = fleet.per_second(measured.log_bytes) * _DAY
    written = events(measured, fleet, change)
    return (
        f"{fleet.hosts:,}",
        f"{fleet.interval:g} s",
        f"{fleet.reports:,.0f}",
        f"{fleet.collectors}",
        _cores(measured.collector_us, fleet),
        _cores(measured.database_us, fleet),
        size(memory(measured, fleet)),
        f"{row_writes(measured, fleet, change) / 1e6:,.1f} million",
        f"{_at_most(measured.log_bytes, fleet)}{size(log)}",
        f"{written / fleet.hosts:.3g}",
        size(written * retention * measured.event_bytes),
    )


def _cores(curve: Curve, fleet: Fleet) -> str:
    return f"{_at_most(curve, fleet)}{fleet.per_second(curve) / 1e6:.2f}"


def _at_most(curve: Curve, fleet: Fleet) -> str:
    return "≤ " if fleet.rate < _SAME * curve[0][0] else ""


def origin(results: Mapping[str, Any]) -> str:
    """Of which commit and time the results are, as far as they say it."""
    return f"Measured: {'; '.join(f'{name} {_run(results[name])}' for name in SOURCES)}."


def _run(result: Mapping[str, Any]) -> str:
    if "commit" not in result or "at" not in result:
        return "(commit and time not noted)"
    at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(result["at"]))
    commit = result["commit"] or "no commit"
    return f"({commit.replace('+', ' with uncommitted changes')}, {at} UTC)"


def capacity_notes(measured: Costs, table: str) -> str:
    """What bounds the hosts."""
    cpu = (
        "The collectors' CPU is without TLS; `python -m bench.ingest` measures what that adds."
        if measured.tls is None
        else f"The collectors' CPU is with TLS, which adds {measured.tls:.0f} us to a report."
    )
    notes = f"""\
- A collector process takes {STREAMS:,} streams (`limits.connections`), and no more were measured. A larger fleet has
  several, each with commits of its own: a report costs what it does at the rate of one process, also in the database.
- Several processes are counted as so many times one; `python -m bench.workers` measures two side by side.
- CPU at the pace of up to 10,000 hosts was measured from {measured.paced_streams:,} streams; `python -m bench.ingest` shows what more
  streams add at one rate.
- {cpu}"""
    return (
        f"{notes}\n- ≥: at the highest rate that was measured; there may be room for more."
        if "≥" in table
        else notes
    )


def fleet_notes(measured: Costs, table: str, change: float, retention: float) -> str:
    """What the fleets are taken to do."""
    notes = f"""\
- {change * 100:g}% of the reports change a state, so there are fewer changes at a longer interval. Each writes an event, of
  {measured.event_bytes:g} bytes, kept for {retention:g} days. {CHANGE * 100:g}% is what was measured, and a fleet that never rests; for a calmer one
  there is `--change 0.001`. Events shrink in proportion; CPU and redo log stay those of {CHANGE * 100:g}%, so they are no less.
- Nearly all row writes are updates in place. Beside the redo log the disk has to write the changed pages, for which
  there is no figure: a page is written once for all rows that have changed in it meanwhile.
- Memory is with TLS; a stream's is that with {measured.memory_streams:,} of them in a process."""
    return (
        f"{notes}\n- ≤: fewer reports a second than were measured; it is less than this."
        if "≤" in table
        else notes
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--utilisation", type=float, default=0.5, help="share of a core that may be in use")
    parser.add_argument(
        "--change",
        type=float,
        default=CHANGE,
        help=f"share of the reports that change a state, up to {CHANGE}",
    )
    parser.add_argument("--retention", type=float, default=RETENTION, help="days for which events are kept")
    options = parser.parse_args()
    if not 0 <= options.change <= CHANGE:
        parser.error(f"--change is from 0 to {CHANGE}: no more was measured")
    try:
        results = json.loads(options.results.read_text(encoding="utf-8"))
        measured = costs(results)
    except FileNotFoundError:
        parser.exit(1, f"{options.results}: no such file; run: python -m bench\n")
    except NotMeasured as error:
        parser.exit(1, f"{options.results} lacks {error}; run: python -m bench {' '.join(SOURCES)}\n")
    capacity = capacity_table(measured, options.utilisation)
    fleets = fleet_table(measured, options.change, options.retention)
    notes = fleet_notes(measured, fleets, options.change, options.retention)
    print(origin(results), capacity, capacity_notes(measured, capacity), fleets, notes, sep="\n\n")


if __name__ == "__main__":
    main()
