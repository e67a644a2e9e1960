"""What simulated hosts said, in their own words, and what a collector must have made of it. Pure.

A ledger is a file of JSON lines that one process of many agents appends to:

    {"host": 7, "epoch": 12, "seq": 3, "at": 1700000000000, "word": 0, "level": 0.1}   about to be spooled
    {"host": 7, "epoch": 12, "resumed": 2}   an agent began on a spool whose newest report is number 2
    {"host": 7, "epoch": 12, "acked": 3}     the collector's word that everything up to 3 is committed

A report is written down before it is spooled, so one that a killed agent did not get to spool is in the
ledger too; the line of the agent that came after it tells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

WORD = "word"
"""The check that has a state of its own in each report."""

LEVEL = "level"
"""The check that a rule judges: CRITICAL from `ENTER` on, until below `LEAVE`."""

ENTER, LEAVE = 0.9, 0.5
STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


class Made(NamedTuple):
    """One report as its host made it."""

    epoch: int
    seq: int
    at: int
    word: int
    level: float


class Change(NamedTuple):
    """A state transition, or another event, as it must be in the database."""

    kind: str
    subject: str = ""
    old: str = ""
    new: str = ""
    measured_at: int = 0


@dataclass
class HostLedger:
    """Everything that one host said."""

    made: list[Made] = field(default_factory=list)
    acked: dict[int, int] = field(default_factory=dict)
    """By epoch, the highest number that was acked."""
    resumed: int = 0

    @property
    def mark(self) -> tuple[int, int]:
        """(epoch, seq) of the newest report."""
        return (self.made[-1].epoch, self.made[-1].seq) if self.made else (0, 0)

    def has_passed(self, stored: tuple[int, int], mark: tuple[int, int]) -> bool:
        """Whether the `stored` mark is past another; an epoch that came later is."""
        if stored[0] == mark[0]:
            return stored[1] > mark[1]
        order = list(dict.fromkeys(report.epoch for report in self.made))
        return stored[0] in order and order.index(stored[0]) > order.index(mark[0])

    def note(self, line: dict[str, Any]) -> None:
        """Take in one line of the ledger."""
        if "acked" in line:
            self.acked[line["epoch"]] = max(line["acked"], self.acked.get(line["epoch"], 0))
        elif "resumed" in line:
            self.resumed += 1
            # What was written down but never spooled was never said.
            while self.made and self.made[-1].epoch == line["epoch"] and self.made[-1].seq > line["resumed"]:
                self.made.pop()
        else:
            self.made.append(Made(line["epoch"], line["seq"], line["at"], line["word"], line["level"]))


class Ledger:
    """All hosts' ledgers, by number."""

    def __init__(self) -> None:
        self.hosts: dict[int, HostLedger] = {}

    def note(self, text: str) -> None:
        """Take in a whole line of a file."""
        line = json.loads(text)
        self.hosts.setdefault(line["host"], HostLedger()).note(line)


def expected_changes(made: Iterable[Made]) -> list[Change]:
    """Every event that a host's reports must have led to, in order.

    Written anew from the documentation, not with the collector's own code.
    """
    changes = [Change("enrolled")]
    word, level, epoch = "OK", "OK", 0
    for report in made:
        if epoch and report.epoch != epoch:
            changes.append(Change("new-epoch", measured_at=report.at))
        epoch = report.epoch
        new_word = STATES[report.word]
        new_level = level
        if report.level >= ENTER:
            new_level = "CRITICAL"
        elif report.level < LEAVE:
            new_level = "OK"
        for subject, old, new in ((LEVEL, level, new_level), (WORD, word, new_word)):
            if old != new:
                changes.append(Change("state", subject, old, new, report.at))
        word, level = new_word, new_level
    return changes


class Discrepancies(NamedTuple):
    """What the ledger has and the database has not, and the other way round."""

    lost: list[str]
    duplicated: list[str]


def compare_changes(host: int, expected: list[Change], stored: list[Change]) -> Discrepancies:
    """Both in order; the order of what one report changed does not matter."""
    missing = Counter(expected)
    missing.subtract(stored)
    known = set(expected)
    lost = [f"host {host}: missing: {change}" for change, count in missing.items() if count > 0]
    duplicated = [
        f"host {host}: {'twice' if change in known else 'never happened'}: {change}"
        for change, count in missing.items()
        if count < 0
    ]
    if not lost and not duplicated:
        order = [(change.measured_at, change.kind) for change in stored if change.kind == "state"]
        wanted = [(change.measured_at, change.kind) for change in expected if change.kind == "state"]
        for got, want in zip_longest(order, wanted):
            if got != want:
                lost.append(f"host {host}: out of order: {got} in the place of {want}")
                break
    return Discrepancies(lost, duplicated)


def behind_acks(ledger: Ledger, marks: dict[int, tuple[int, int]]) -> list[str]:
    """The hosts whose stored mark is below what they were told is committed.

    `ledger` must have been read before `marks` (epoch, seq) were.
    """
    found = []
    for number, host in ledger.hosts.items():
        epoch, seq = marks.get(number, (0, 0))
        acked = host.acked.get(epoch, 0)
        if seq < acked:
            found.append(f"host {number}: acked up to {acked}, stored only {seq}")
        if not epoch and host.acked:
            found.append(f"host {number}: acked, but unknown to the database")
    return found
