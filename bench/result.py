"""What a benchmark ends with: goals, and one line of JSON that has them beside the figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NamedTuple


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
    """With the two options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", action="store_true", help="print nothing but the last line")
    return made


def print_result(benchmark: str, goals: Sequence[Goal], **figures: object) -> None:
    """The last line."""
    shown = [{**goal._asdict(), "met": goal.met} for goal in goals]
    print(json.dumps({"benchmark": benchmark, **figures, "goals": shown}), flush=True)
