"""The table of goals: what was reached, and by which run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.__main__ import NAMES, origin, table
from bench.result import Comparison, Goal, medians, print_result, spreads

REACHED = {"name": "seconds", "value": 0.1234, "op": "<=", "goal": 0.5, "met": True}
MISSED = {"name": "kB a stream", "value": 96, "op": "<=", "goal": 60.0, "met": False}


def test_a_goal_is_a_row_that_says_whether_it_was_met():
    results = {"herd": {"goals": [MISSED]}, "read": {"goals": [REACHED]}}
    assert table(results).splitlines()[2:] == [
        "| herd | kB a stream | <= 60 | 96 | missed |",
        "| read | seconds | <= 0.5 | 0.123 | met |",
    ]


def test_what_has_no_goal_comes_after_what_has_one():
    beside = {"name": "kB a stream in an echo", "value": 91.3}
    assert table({"herd": {"goals": [MISSED], "compared": [beside]}}).splitlines()[3:] == [
        "| herd | kB a stream in an echo | | 91.3 | |"
    ]


def test_what_was_not_measured_is_left_out():
    assert len(table({}).splitlines()) == 2


def test_the_table_says_of_which_commit_it_is():
    older = {"commit": "abc", "at": 0, "machine": "2 cores"}
    newer = {"commit": "def+", "at": 86_400, "machine": "2 cores"}
    assert origin({"read": newer, "rows": older, "ingest": older}).splitlines() == [
        "abc, 1970-01-01, 2 cores: ingest, rows",
        "def+, 1970-01-02, 2 cores: read",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_alone_and_takes_the_same_options(name: str):
    command = [sys.executable, "-m", f"bench.{name}", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--quick" in shown
    assert "--json" in shown


def test_a_goal_is_met_or_not():
    assert [Goal("", 1, op, 2).met for op in ("<=", ">=", "==")] == [True, False, False]
    assert [Goal("", 2, op, 2).met for op in ("<=", ">=", "==")] == [True, True, True]


def test_medians_and_spreads_are_of_each_figure():
    rows = [{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 7.0}]
    assert medians(rows) == {"a": 2.0, "b": 1.0}
    assert spreads(rows) == {"a": [1.0, 3.0], "b": [1.0, 7.0]}


def test_the_last_line_has_goals_and_figures(capsys: pytest.CaptureFixture[str]):
    print_result("read", [Goal("seconds", 0.6, "<=", 0.5)], [Comparison("SQL", 0.1)], hosts=7)
    assert json.loads(capsys.readouterr().out) == {
        "benchmark": "read",
        "hosts": 7,
        "compared": [{"name": "SQL", "value": 0.1}],
        "goals": [{"name": "seconds", "value": 0.6, "op": "<=", "goal": 0.5, "met": False}],
    }
