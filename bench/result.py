"""What a benchmark ends with: goals, and one line of JSON that has them beside the figures."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A figure that must be at most (`<=`), at least (`>=`) or just (`==`) what was set as its goal."""

    name: str
    value: float
    op: str
    goal: float

    @property
    def met(self) -> bool:
        """Whether it is."""
        return {"<=": self.value <= self.goal, ">=": self.value >= self.goal, "==": self.value == self.goal}[
            self.op
        ]


def parser(description: str | None, quick: str = "less of everything: under 50 s") -> argparse.ArgumentParser:
    """With the two options that every benchmark has. A process that has one ends what it started at SIGTERM, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", action="store_true", help="print nothing but the last line")
    return made


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over several rounds that all have the same ones."""
    return {name: median(row[name] for row in rows) for name in rows[0]}


def spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The least and the greatest of each."""
    return {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in rows[0]}


class Comparison(NamedTuple):
    """A figure without a goal that belongs beside those that have one: what else was measured in the same run."""

    name: str
    value: float


def print_result(
    benchmark: str, goals: Sequence[Goal], compared: Sequence[Comparison] = (), **figures: Any
) -> None:
    """The last line."""
    shown = [{**goal._asdict(), "met": goal.met} for goal in goals]
    beside = [one._asdict() for one in compared]
    print(json.dumps({"benchmark": benchmark, **figures, "compared": beside, "goals": shown}), flush=True)
