"""What a report, an event and a stream cost, taken from the results of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from collector.config import Config

SOURCES = ("ingest", "rows", "herd")
"""The benchmarks whose results are needed."""
STREAMS = Config().limits.connections
"""Of one collector process."""
CHANGE = 0.01
"""Share of the reports that change a state, in what is measured."""

_PACES = ("at_1000_hosts", "at_10000_hosts")  # of bench.rows

Curve = tuple[tuple[float, float], ...]
"""Reports a second of one collector process, ascending, and what one costs there."""


class Costs(NamedTuple):
    """Of a report, by the rate: CPU in microseconds, redo log in bytes. Rows that a report writes if it changes
    nothing, and further rows and events for each that changes something; bytes of an event on the disk. Of a
    collector process: rows that it writes a second by the clock, its memory in MB without streams, and in kB for
    each of `memory_streams` streams. At the paces of `bench.rows` the reports came from `paced_streams`. `tls` is the
    part of the collector's CPU that is TLS, if that was measured."""

    collector_us: Curve
    database_us: Curve
    log_bytes: Curve
    rows: float
    rows_per_change: float
    events_per_change: float
    event_bytes: float
    rows_by_clock: float
    empty_mb: float
    stream_kb: float
    memory_streams: int
    paced_streams: int
    tls: float | None = None


class NotMeasured(Exception):
    """What the results lack."""


def costs(results: Mapping[str, Any]) -> Costs:
    """What of the results is needed. Raises NotMeasured."""
    _check(results)
    ingest, rows = results["ingest"], results["rows"]
    tls = ingest["tls"]["tls_us"] - ingest["tls"]["plain_us"] if "tls" in ingest else None
    paced = [rows[name] for name in _PACES]
    busy = [_with_all_streams(ingest), _best(ingest)]
    collector_us = _curve([*_pairs(paced, "writer_us"), *_pairs(busy, "collector_us")])
    changes = rows["one_percent"]["changes"]
    per_change = rows["one_percent"]["reports"] / changes
    return Costs(
        collector_us=tuple((rate, cost + (tls or 0.0)) for rate, cost in collector_us),
        database_us=_curve(_pairs([*paced, *busy], "database_us")),
        log_bytes=_curve(_pairs([*paced, rows["one_percent"]], "log_bytes")),
        rows=rows["calm"]["rows"],
        rows_per_change=(rows["one_percent"]["rows"] - rows["calm"]["rows"]) * per_change,
        events_per_change=rows["one_percent"]["tables"]["event"] * per_change,
        event_bytes=rows["event_bytes"],
        rows_by_clock=max(row["rows_by_clock_per_s"] for row in paced),
        empty_mb=max(_in_herd(results["herd"], "empty_mb")),
        stream_kb=max(_in_herd(results["herd"], "stream_kb")),
        memory_streams=results["herd"]["hosts"],
        paced_streams=rows["hosts"],
        tls=tls,
    )


def _check(results: Mapping[str, Any]) -> None:
    """Raises NotMeasured unless there are full results of all that is needed."""
    for name in SOURCES:
        if name not in results:
            raise NotMeasured(name)
        if results[name].get("quick"):
            raise NotMeasured(f"{name} of a full run, and a quick one is too short to size anything by")


def _best(ingest: Mapping[str, Any]) -> Mapping[str, float]:
    """The cheapest of the variants in plaintext, as fast as it can."""
    variants = [row for row in ingest["variants"] if row["change"] == CHANGE and not row.get("tls")]
    if not variants:
        raise NotMeasured(f"ingest in plaintext, with a change in {CHANGE:.0%} of the reports")
    return min(variants, key=lambda row: float(row["collector_us"] + row["database_us"]))


def _with_all_streams(ingest: Mapping[str, Any]) -> Mapping[str, float]:
    """At one rate, from as many hosts as one process takes."""
    for row in ingest["rated"]:
        if row["hosts"] == STREAMS:
            return dict(row)
    raise NotMeasured(f"ingest, with {STREAMS:,} hosts")


def _in_herd(herd: Mapping[str, Any], figure: str) -> list[float]:
    """Before and after each return of the fleet."""
    return [row[figure] for row in (herd["first"], *herd["variants"])]


def _pairs(rows: Sequence[Mapping[str, float]], figure: str) -> list[tuple[float, float]]:
    return [(row["reports_per_s"], row[figure]) for row in rows]


def _curve(pairs: Sequence[tuple[float, float]]) -> Curve:
    return tuple(sorted(pairs))


def cost_at(curve: Curve, rate: float) -> float:
    """What a report costs where so many come in a second; outside of what was measured, as at its edge."""
    if rate <= curve[0][0]:
        return curve[0][1]
    for (low, before), (high, after) in pairwise(curve):
        if rate <= high:
            share = math.log(rate / low) / math.log(high / low)
            return float(before * (after / before) ** share)
    return curve[-1][1]


def per_second(curve: Curve, rate: float) -> float:
    """What all reports of a second cost together; at fewer than were measured, what these did: it is no more."""
    rate = max(rate, curve[0][0])
    return rate * cost_at(curve, rate)
