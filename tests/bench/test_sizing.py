"""The sizing table: arithmetic on results, whichever of them are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sizing

INGEST = {
    "variants": [
        {"change": 1.0, "collector_us": 900.0, "database_us": 900.0},
        {"change": 0.01, "collector_us": 300.0, "database_us": 110.0},
        {"change": 0.01, "collector_us": 200.0, "database_us": 100.0},
    ]
}
ROWS = {
    "calm": {"rows": 2.0},
    "paced": {"rows": 2.02, "log_bytes": 1500, "data_bytes": 4000},
    "event_bytes": 250,
}
HERD = {"variants": [{"hosts": 5000, "kb_per_stream": 42.5}], "goals": []}
ALL = {"ingest": INGEST, "rows": ROWS, "herd": HERD}


def test_costs_are_those_of_the_best_variant_with_one_percent_change():
    assert sizing.costs(ALL) == sizing.Costs(200.0, 100.0, 42.5, 2.02, 1500, 4000, 250)


def test_what_was_not_measured_is_none():
    assert sizing.costs({"ingest": INGEST}) == sizing.Costs(200.0, 100.0)


@pytest.mark.parametrize("results", [{}, {"ingest": {"variants": INGEST["variants"][:1]}}])
def test_without_the_ingest_benchmark_there_is_no_table(results):
    with pytest.raises(sizing.NotMeasured):
        sizing.costs(results)


def test_the_outermost_figure_of_a_name_is_found():
    assert list(sizing.find({"a": [{"kb": 2}], "kb": 1}, "kb")) == [1, 2]
    assert list(sizing.find({"kb": "many"}, "kb")) == []


def test_a_core_in_half_use_serves_half_of_what_it_could():
    assert sizing.hosts_per_core(200, 15, 1.0) == 75_000
    assert sizing.hosts_per_core(200, 15, 0.5) == 37_500
    assert sizing.hosts_per_core(200, 60, 0.5) == 4 * 37_500


def test_cores_and_hosts_per_core_agree():
    hosts = sizing.hosts_per_core(200, 15, 0.5)
    assert sizing.cores(hosts, 200, 15, 0.5) == pytest.approx(1)


def test_a_day_has_5760_reports_every_15_seconds():
    assert sizing.reports_a_day(10, 15) == 57_600


def test_events_take_what_is_kept():
    assert sizing.event_disk(1000, events=10, retention=365, event_bytes=200) == 730e6


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (730e6, "730 MB"), (7.3e13, "73 TB")]
)
def test_sizes_are_in_thousands(count, text):
    assert sizing.size(count) == text


def test_the_tables_are_markdown_with_as_many_cells_in_every_row():
    for table in (
        sizing.capacity_table(sizing.costs(ALL), 0.5),
        sizing.fleet_table(sizing.costs(ALL), 0.5, 10, 365),
        sizing.fleet_table(sizing.Costs(200, 100), 0.5, 10, 365),
    ):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_fleet_of_10000_every_15_seconds():
    table = sizing.fleet_table(sizing.costs(ALL), 0.5, 10, 365)
    [row] = [line for line in table.splitlines() if line.startswith("| 10,000 | 15 s |")]
    assert row == (
        "| 10,000 | 15 s | 667 | 0.27 | 0.13 | 425 MB | 116.4 million | 86.4 GB | 230 GB | 9.12 GB |"
    )


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
    assert "| collector (200 us a report) | 37,500 | 75,000 | 150,000 |" in done.stdout
