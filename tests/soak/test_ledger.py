"""The soak's own judgement: it must see whatever is lost or doubled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.soak.ledger import Change, Ledger, behind_acks, compare_changes, expected_changes
from tests.soak.memory import Memory, Sample, look


def lines(*made: dict[str, object]) -> Ledger:
    ledger = Ledger()
    for line in made:
        ledger.note(json.dumps({"host": 1, "epoch": 9, **line}))
    return ledger


def report(seq: int, word: int = 0, level: float = 0.1, **other: object) -> dict[str, object]:
    return {"seq": seq, "at": 1_000 * seq, "word": word, "level": level, **other}


def test_what_was_never_spooled_was_never_said() -> None:
    ledger = lines(report(1), report(2), report(3), {"resumed": 2}, report(3, word=2))
    assert [(made.seq, made.word) for made in ledger.hosts[1].made] == [(1, 0), (2, 0), (3, 2)]


def test_each_transition_is_one_event() -> None:
    ledger = lines(
        report(1),
        report(2, word=1),
        report(3, word=1, level=0.95),
        report(4, word=1, level=0.7),  # not yet below where it clears
        report(5, word=0, level=0.1),
        report(1, word=0, epoch=10, at=6_000),
        report(2, word=3, epoch=10, at=7_000),
    )
    assert expected_changes(ledger.hosts[1].made) == [
        Change("enrolled"),
        Change("state", "word", "OK", "WARNING", 2_000),
        Change("state", "level", "OK", "CRITICAL", 3_000),
        Change("state", "level", "CRITICAL", "OK", 5_000),
        Change("state", "word", "WARNING", "OK", 5_000),
        Change("new-epoch", measured_at=6_000),
        Change("state", "word", "OK", "UNKNOWN", 7_000),
    ]


FIRST = Change("state", "word", "OK", "WARNING", 1)
SECOND = Change("state", "word", "WARNING", "OK", 2)


@pytest.mark.parametrize(
    ("stored", "lost", "duplicated"),
    [
        ([FIRST, SECOND], 0, 0),
        ([FIRST], 1, 0),
        ([FIRST, SECOND, SECOND], 0, 1),
        ([FIRST, SECOND, Change("silent")], 0, 1),
        ([SECOND, FIRST], 1, 0),
    ],
)
def test_what_is_missing_doubled_invented_or_out_of_order_is_found(
    stored: list[Change], lost: int, duplicated: int
) -> None:
    found = compare_changes(1, [FIRST, SECOND], stored)
    assert (len(found.lost), len(found.duplicated)) == (lost, duplicated)


def test_an_ack_of_what_is_not_stored_is_found() -> None:
    ledger = lines(report(1), report(2), {"acked": 2})
    assert behind_acks(ledger, {1: (9, 2)}) == []
    assert behind_acks(ledger, {1: (9, 1)})
    assert behind_acks(ledger, {})
    assert behind_acks(ledger, {1: (10, 1)}) == []  # an epoch that came later


def test_a_later_epoch_is_past_any_number_of_an_earlier_one() -> None:
    host = lines(report(1), report(2), report(1, epoch=10)).hosts[1]
    assert host.has_passed((9, 2), (9, 1))
    assert not host.has_passed((9, 2), (9, 2))
    assert host.has_passed((10, 1), (9, 2))
    assert not host.has_passed((9, 2), (10, 1))
    assert not host.has_passed((0, 0), (9, 1))


def test_a_slope_is_that_of_each_process_by_itself() -> None:
    memory = Memory(settling=10)
    memory.by_pid[1] = [Sample(0, 10, 1), Sample(10, 50, 1), Sample(46, 50.1, 1), Sample(82, 50.2, 1)]
    memory.by_pid[2] = [Sample(100, 5, 1), Sample(110, 20, 1), Sample(146, 20.1, 1), Sample(182, 20.2, 9)]
    assert memory.slope == pytest.approx(10.0)
    assert memory.peak == 50.2
    assert memory.most_threads == 9
    assert Memory(settling=0).slope is None


def test_this_process_has_memory_and_threads() -> None:
    sample = look(os.getpid(), 1.0)
    assert sample is not None
    assert sample.resident > 1
    assert sample.threads >= 1
    assert look(2**22 + 1, 1.0) is None
    assert Path("/proc/self/status").exists()
