from __future__ import annotations

import logging

from agent.complaints import Complaints


def test_a_problem_is_told_once_until_things_go_well() -> None:
    complaints = Complaints()
    assert not complaints.settle()
    levels = [
        complaints.level(problem)
        for problem in ("refused", "clock says 10:11:12", "refused", "clock says 10:11:13")
    ]
    assert levels == [logging.WARNING, logging.WARNING, logging.DEBUG, logging.DEBUG]
    assert complaints.settle()
    assert complaints.level("refused", logging.ERROR) == logging.ERROR


def test_what_is_remembered_is_bounded() -> None:
    complaints = Complaints()
    for number in range(1_000):
        complaints.level("x" * number)
    assert len(complaints._told) == 16
