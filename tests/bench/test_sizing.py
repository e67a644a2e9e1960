"""The sizing tables: arithmetic on what was measured of one collector process, and nothing beyond it."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from bench import costs, sizing
from bench.costs import Costs
from bench.sizing import Capacity, Fleet

INGEST = {
    "variants": [
        {"change": 1.0, "reports_per_s": 1000.0, "collector_us": 900.0, "database_us": 900.0},
        {"change": 0.01, "reports_per_s": 3000.0, "collector_us": 300.0, "database_us": 110.0},
        {"change": 0.01, "reports_per_s": 4000.0, "collector_us": 200.0, "database_us": 100.0},
    ],
    "rated": [
        {"hosts": 10_000, "reports_per_s": 1500.0, "collector_us": 250.0, "database_us": 200.0},
        {"hosts": 100, "reports_per_s": 1500.0, "collector_us": 150.0, "database_us": 150.0},
    ],
}
ROWS = {
    "calm": {"rows": 2.0},
    "one_percent": {
        "reports": 20_000,
        "changes": 160,
        "reports_per_s": 3500.0,
        "rows": 2.016,
        "tables": {"event": 0.008},
        "log_bytes": 900,
    },
    "at_1000_hosts": {
        "reports_per_s": 40.0,
        "rows_by_clock_per_s": 20.0,
        "log_bytes": 1500,
        "writer_us": 800.0,
        "database_us": 700.0,
    },
    "at_10000_hosts": {
        "reports_per_s": 400.0,
        "rows_by_clock_per_s": 18.0,
        "log_bytes": 1200,
        "writer_us": 500.0,
        "database_us": 400.0,
    },
    "event_bytes": 250,
    "hosts": 1000,
}
HERD = {
    "hosts": 5000,
    "first": {"stream_kb": 40.5, "empty_mb": 60.0},
    "variants": [{"stream_kb": 42.5, "empty_mb": 61.0}, {"stream_kb": 41.0, "empty_mb": 60.5}],
}
ALL = {"ingest": INGEST, "rows": ROWS, "herd": HERD}
CURVE = ((40.0, 700.0), (400.0, 400.0), (4000.0, 100.0))
MEASURED = costs.costs(ALL)


def test_costs_are_those_of_the_paces_of_all_streams_and_of_the_best_variant_with_one_percent_change():
    assert costs.costs(ALL) == Costs(
        collector_us=((40.0, 800.0), (400.0, 500.0), (1500.0, 250.0), (4000.0, 200.0)),
        database_us=((40.0, 700.0), (400.0, 400.0), (1500.0, 200.0), (4000.0, 100.0)),
        log_bytes=((40.0, 1500), (400.0, 1200), (3500.0, 900)),
        rows=2.0,
        rows_per_change=pytest.approx(2.0),
        events_per_change=pytest.approx(1.0),
        event_bytes=250,
        rows_by_clock=20.0,
        empty_mb=61.0,
        stream_kb=42.5,
        memory_streams=5000,
        paced_streams=1000,
    )


def test_tls_makes_the_collectors_cpu_dearer_and_nothing_else():
    with_tls = costs.costs(changed("ingest", tls={"plain_us": 150.0, "tls_us": 180.0}))
    assert with_tls.collector_us == ((40.0, 830.0), (400.0, 530.0), (1500.0, 280.0), (4000.0, 230.0))
    assert with_tls._replace(collector_us=MEASURED.collector_us, tls=None) == MEASURED
    assert "adds 30 us" in sizing.capacity_notes(with_tls, "")
    assert "without TLS" in sizing.capacity_notes(MEASURED, "")


def changed(name: str, **figures: Any) -> dict[str, Any]:
    """All results, with other figures of one benchmark."""
    results = deepcopy(ALL)
    results[name] |= figures
    return results


@pytest.mark.parametrize("name", ["ingest", "rows", "herd"])
def test_without_one_of_the_benchmarks_there_is_no_table(name):
    with pytest.raises(costs.NotMeasured, match=name):
        costs.costs({other: found for other, found in ALL.items() if other != name})


@pytest.mark.parametrize("name", ["ingest", "rows", "herd"])
def test_quick_results_are_refused(name):
    with pytest.raises(costs.NotMeasured, match="full run"):
        costs.costs(changed(name, quick=True))
    assert costs.costs(changed(name, quick=False)) == MEASURED


OVER_TLS = [row | {"tls": True} for row in INGEST["variants"]]


@pytest.mark.parametrize(
    "figures",
    [{"variants": INGEST["variants"][:1]}, {"variants": OVER_TLS}, {"rated": INGEST["rated"][1:]}],
)
def test_neither_other_changes_nor_tls_nor_fewer_streams_will_do(figures):
    with pytest.raises(costs.NotMeasured):
        costs.costs(changed("ingest", **figures))


@pytest.mark.parametrize(
    ("rate", "cost"),
    [(1, 700), (40, 700), (40 * 10**0.5, 529.15), (400, 400), (400 * 10**0.5, 200), (4000, 100), (1e6, 100)],
)
def test_a_cost_between_two_rates_is_on_a_line_on_logarithmic_scales(rate, cost):
    assert costs.cost_at(CURVE, rate) == pytest.approx(cost, abs=0.01)


@pytest.mark.parametrize(("rate", "cost"), [(400, 160_000), (40, 28_000), (4, 28_000)])
def test_a_second_costs_no_less_than_the_lowest_rate_that_was_measured(rate, cost):
    assert costs.per_second(CURVE, rate) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("hosts", "collectors", "rate"),
    [(1, 1, 1 / 25), (10_000, 1, 400), (10_001, 2, 200.02), (20_000, 2, 400), (100_000, 10, 400)],
)
def test_a_collector_process_has_no_more_streams_than_were_measured(hosts, collectors, rate):
    fleet = Fleet(hosts, 25)
    assert fleet.collectors == collectors
    assert fleet.rate == pytest.approx(rate)


def test_two_full_collectors_cost_twice_what_one_does():
    one, two = Fleet(10_000, 25), Fleet(20_000, 25)
    for curve in (MEASURED.collector_us, MEASURED.database_us, MEASURED.log_bytes):
        assert two.per_second(curve) == pytest.approx(2 * one.per_second(curve))
        assert two.per_second(curve) > costs.per_second(curve, two.reports)
    assert sizing.memory(MEASURED, two) == pytest.approx(2 * sizing.memory(MEASURED, one))
    assert sizing.row_writes(MEASURED, two, 0.01) == pytest.approx(2 * sizing.row_writes(MEASURED, one, 0.01))


def test_memory_is_that_of_every_empty_process_and_of_every_stream():
    assert sizing.memory(MEASURED, Fleet(15_000, 15)) == pytest.approx(2 * 61e6 + 15_000 * 42.5e3)


@pytest.mark.parametrize(("change", "rows"), [(0, 2.0), (0.001, 2.002), (0.01, 2.02)])
def test_rows_are_two_a_report_more_for_a_change_and_those_by_the_clock_of_every_collector(change, rows):
    reports = 20_000 / 25 * 86_400
    by_clock = 2 * 20 * 86_400
    assert sizing.row_writes(MEASURED, Fleet(20_000, 25), change) == pytest.approx(rows * reports + by_clock)


def test_events_are_of_the_same_reports_that_change_something():
    assert sizing.events(MEASURED, Fleet(1000, 15), 0.01) == pytest.approx(1000 * 57.6)
    assert sizing.events(MEASURED, Fleet(1000, 60), 0.001) == pytest.approx(1000 * 1.44)
    two_each = MEASURED._replace(events_per_change=2.0)
    assert sizing.events(two_each, Fleet(1000, 60), 0.001) == pytest.approx(1000 * 2.88)


def test_events_take_the_disk_for_as_long_as_they_are_kept():
    days = [sizing.fleet_row(MEASURED, Fleet(1000, 15), 0.01, days)[-1] for days in (1, 10)]
    assert days == ["14.4 MB", "144 MB"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1500, "1.5 kB"), (730e6, "730 MB"), (7.3e13, "73 TB")],
)
def test_sizes_are_in_thousands(count, text):
    assert sizing.size(count) == text


def test_a_collector_process_has_no_higher_rate_than_was_measured():
    assert sizing.process_hosts(MEASURED, 25) == Capacity(10_000)
    assert sizing.process_hosts(MEASURED, 2) == Capacity(8000, bounded=True)


def test_a_core_of_collectors_has_as_many_processes_as_keep_it_busy():
    # 10,000 hosts every 25 s are 400 reports a second of 500 us: a fifth of a core.
    assert sizing.collector_hosts(MEASURED, 25, 0.5).hosts == pytest.approx(25_000)
    assert sizing.collector_hosts(MEASURED, 25, 0.1).hosts == pytest.approx(5000)


def test_a_core_of_the_database_goes_by_the_rate_of_one_process():
    # 400 reports a second of 400 us for each process: 0.16 of a core.
    assert sizing.database_hosts(MEASURED, 25, 0.5).hosts == pytest.approx(31_250)


def test_a_core_of_the_database_has_no_higher_rate_than_was_measured():
    cheap = MEASURED._replace(database_us=((40.0, 10.0), (4000.0, 10.0)))
    assert sizing.database_hosts(cheap, 25, 0.5) == Capacity(100_000, bounded=True)


@pytest.mark.parametrize(
    ("capacity", "text"),
    [(Capacity(10_000), "10,000"), (Capacity(1999.9), "1,900"), (Capacity(2000, bounded=True), "≥ 2,000")],
)
def test_hosts_are_rounded_down_and_say_if_there_may_be_more(capacity, text):
    assert str(capacity) == text


def test_the_tables_are_markdown_with_as_many_cells_in_every_row():
    for table in (sizing.capacity_table(MEASURED, 0.5), sizing.fleet_table(MEASURED, 0.01, 365)):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_fleet_of_two_collectors():
    assert sizing.fleet_row(MEASURED, Fleet(20_000, 25), 0.01, 365) == (
        *("20,000", "25 s", "800", "2", "0.40", "0.32", "972 MB"),
        *("143.1 million", "82.9 GB", "34.6", "63.1 GB"),
    )


def test_a_fleet_that_reports_less_than_was_measured_takes_at_most_as_much():
    row = sizing.fleet_row(MEASURED, Fleet(1000, 50), 0.01, 365)
    assert row[4:6] == ("≤ 0.03", "≤ 0.03")
    assert row[8] == "≤ 5.18 GB"
    assert "≤" not in "".join(sizing.fleet_row(MEASURED, Fleet(1000, 26), 0.01, 365))


def test_signs_are_explained_where_they_are():
    assert "≥:" in sizing.capacity_notes(MEASURED, "≥ 2,000")
    assert "≥" not in sizing.capacity_notes(MEASURED, "2,000")
    assert "≤:" in sizing.fleet_notes(MEASURED, "≤ 0.03", 0.01, 365)
    assert "≤" not in sizing.fleet_notes(MEASURED, "0.03", 0.01, 365)


def test_it_says_of_which_commit_and_time_the_results_are():
    results = changed("ingest", commit="abc+", at=86_400) | {"herd": HERD | {"commit": "", "at": 60}}
    assert sizing.origin(results) == (
        "Measured: ingest (abc with uncommitted changes, 1970-01-02 00:00 UTC); "
        "rows (commit and time not noted); herd (no commit, 1970-01-01 00:01 UTC)."
    )


def test_the_bounds_of_a_process_and_the_days_of_events_are_the_collectors_defaults():
    assert (sizing.STREAMS, sizing.RETENTION) == (10_000, 365)


def run(results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.sizing", "--results", str(results), *options]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A file of all of them."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(ALL))
    return path


def test_without_results_it_says_how_to_make_them(tmp_path):
    done = run(tmp_path / "results.json")
    assert done.returncode == 1
    assert "run: python -m bench" in done.stderr


def test_of_a_quick_run_it_prints_no_table(results):
    results.write_text(json.dumps(changed("rows", quick=True)))
    done = run(results)
    assert (done.returncode, done.stdout) == (1, "")
    assert "lacks rows of a full run" in done.stderr


def test_more_changes_than_were_measured_are_refused(results):
    done = run(results, "--change", "0.02")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no more was measured" in done.stderr


def test_it_prints_both_tables(results):
    done = run(results, "--change", "0.001", "--retention", "30")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Measured: ")
    assert done.stdout.count("every 15 s") == 1
    assert done.stdout.count("| 100,000 |") == len(sizing.INTERVALS)
    assert "0.1% of the reports" in done.stdout
    assert "kept for 30 days" in done.stdout
