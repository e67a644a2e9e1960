"""The table of goals: what was reached, and by which run."""

from __future__ import annotations

from bench.__main__ import table

REACHED = {"name": "seconds", "value": 0.1234, "op": "<=", "goal": 0.5, "met": True}
MISSED = {"name": "kB a stream", "value": 96, "op": "<=", "goal": 60.0, "met": False}


def test_a_goal_is_a_row_that_says_which_run_it_is_of_and_whether_it_was_met():
    results = {
        "herd": {"quick": True, "goals": [MISSED]},
        "read": {"quick": False, "goals": [REACHED]},
    }
    assert table(results).splitlines()[2:] == [
        "| herd, quick | kB a stream | <= 60 | 96 | missed |",
        "| read | seconds | <= 0.5 | 0.123 | met |",
    ]


def test_what_was_not_measured_is_left_out():
    assert len(table({}).splitlines()) == 2
