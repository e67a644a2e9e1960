"""The sizing tables: arithmetic on results, whichever of them are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sizing

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
    "one_percent": {"reports_per_s": 3500.0, "rows": 2.02, "log_bytes": 900, "disk_bytes": 1500},
    "at_1000_hosts": {
        "reports_per_s": 40.0,
        "rows": 2.04,
        "rows_by_clock_per_s": 20.0,
        "log_bytes": 1500,
        "disk_bytes": 20_000,
        "writer_us": 800.0,
        "database_us": 700.0,
    },
    "at_10000_hosts": {
        "reports_per_s": 400.0,
        "rows": 2.03,
        "rows_by_clock_per_s": 18.0,
        "log_bytes": 1200,
        "disk_bytes": 8000,
        "writer_us": 500.0,
        "database_us": 400.0,
    },
    "event_bytes": 250,
    "hosts": 1000,
}
HERD = {
    "first": {"stream_kb": 40.5, "empty_mb": 60.0},
    "variants": [{"stream_kb": 42.5, "empty_mb": 61.0}, {"stream_kb": 41.0, "empty_mb": 60.5}],
}
ALL = {"ingest": INGEST, "rows": ROWS, "herd": HERD}
CURVE = ((40.0, 700.0), (400.0, 400.0), (4000.0, 100.0))


def test_costs_are_those_of_the_paces_of_most_hosts_and_of_the_best_variant_with_one_percent_change():
    assert sizing.costs(ALL) == sizing.Costs(
        collector_us=((40.0, 800.0), (400.0, 500.0), (1500.0, 250.0), (4000.0, 200.0)),
        database_us=((40.0, 700.0), (400.0, 400.0), (1500.0, 200.0), (4000.0, 100.0)),
        log_bytes=((40.0, 1500), (400.0, 1200), (3500.0, 900)),
        disk_bytes=((40.0, 20_000), (400.0, 8000), (3500.0, 1500)),
        rows=2.04,
        rows_by_clock=20.0,
        stream_kb=42.5,
        empty_mb=61.0,
        event_bytes=250,
        disk_hosts=1000,
    )


def test_what_was_not_measured_is_left_out():
    fastest = {"ingest": {"variants": INGEST["variants"]}}
    assert sizing.costs(fastest) == sizing.Costs(((4000.0, 200.0),), ((4000.0, 100.0),))


@pytest.mark.parametrize("results", [{}, {"ingest": {"variants": INGEST["variants"][:1]}}])
def test_without_the_ingest_benchmark_there_is_no_table(results):
    with pytest.raises(sizing.NotMeasured):
        sizing.costs(results)


@pytest.mark.parametrize(
    ("rate", "cost"),
    [(1, 700), (40, 700), (40 * 10**0.5, 529.15), (400, 400), (400 * 10**0.5, 200), (4000, 100), (1e6, 100)],
)
def test_a_cost_between_two_rates_is_on_a_line_on_logarithmic_scales(rate, cost):
    assert sizing.cost_at(CURVE, rate) == pytest.approx(cost, abs=0.01)


def test_cores_are_rate_times_cost():
    assert sizing.cores(CURVE, 400) == pytest.approx(0.16)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 1.0])
def test_the_rate_of_a_core_keeps_it_busy_to_that_share(share):
    assert sizing.cores(CURVE, sizing.rate_of_core(CURVE, share)) == pytest.approx(share)


def test_events_take_what_is_kept():
    assert sizing.event_disk(1000, events=10, retention=365, event_bytes=200) == 730e6


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (730e6, "730 MB"), (7.3e13, "73 TB")]
)
def test_sizes_are_in_thousands(count, text):
    assert sizing.size(count) == text


@pytest.mark.parametrize("results", [ALL, {"ingest": INGEST}])
def test_the_tables_are_markdown_with_as_many_cells_in_every_row(results):
    measured = sizing.costs(results)
    for table in (sizing.capacity_table(measured, 0.5), sizing.fleet_table(measured, 10, 365)):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_hosts_per_core_grow_with_the_interval():
    table = sizing.capacity_table(sizing.costs({"ingest": {"variants": INGEST["variants"]}}), 0.5)
    assert "| collector | 200 | 37,500 | 75,000 | 150,000 |" in table
    assert "| database | 100 | 75,000 | 150,000 | 300,000 |" in table


def test_a_fleet_that_reports_400_times_a_second():
    measured = sizing.costs(ALL)
    assert sizing._fleet_row(measured, 6000, 15, 10, 365) == (
        *("6,000", "15 s", "400", "0.20", "0.16", "316 MB"),
        *("72.2 million", "41.5 GB", "-", "5.47 GB"),
    )


def test_what_goes_to_the_disk_is_said_of_no_larger_fleet_than_was_measured():
    measured = sizing.costs(ALL)
    assert sizing._disk_writes(measured, 1000, 40) == "69.1 GB"
    assert sizing._disk_writes(measured, 1001, 40) == "-"


def run(results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.sizing", "--results", str(results)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)


def test_without_results_it_says_how_to_make_them(tmp_path):
    done = run(tmp_path / "results.json")
    assert done.returncode == 1
    assert "run: python -m bench" in done.stderr


def test_it_prints_both_tables(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(ALL))
    done = run(tmp_path / "results.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("every 15 s") == 1
    assert done.stdout.count("| 100,000 |") == len(sizing.INTERVALS)
