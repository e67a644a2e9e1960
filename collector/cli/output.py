"""What a command answers, apart from how it is shown: lines, tables, JSON. Pure.

A page holds raw text. Whatever shows it passes every piece through `escape`, here for pipes and in
`terminal` for terminals, so no command can forget to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

from collector.core.render import escape
from fleetpulse.model import State


class Cell(NamedTuple):
    """A piece of text. `style` is the name of a state in lower case, "dim" or "strong"; or empty."""

    text: str
    style: str = ""


class Line(NamedTuple):
    """A line of text."""

    parts: tuple[Cell, ...]


class Table(NamedTuple):
    """Columns under headings, if they have any. The last column is the one that gets the room that is left."""

    headings: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


Page = Sequence[Line | Table]


class Answer(Protocol):
    """What a command found. Only the form that is asked for is made."""

    @property
    def state(self) -> State:
        """What the command's exit code says."""

    def page(self, rows: int | None) -> Page:
        """For people. `rows` is how many rows of a table fit; None: all."""

    def as_json(self) -> dict[str, object]:
        """For programs, as docs/cli.md describes it."""


def line(*parts: str | Cell) -> Line:
    """A line of parts, plain or styled."""
    return Line(tuple(Cell(part) if isinstance(part, str) else part for part in parts))


def summary(state: State, text: str) -> Line:
    """The line that a monitoring system shows: "CRITICAL: what is the case"."""
    return line(state_cell(state), f": {text}")


@cache
def state_cell(state: State | None) -> Cell:
    """A state by its name, "-" for none."""
    return Cell("-", "dim") if state is None else Cell(state.name, state.name.lower())


def plain(page: Page) -> str:
    """A page for pipes and files: aligned columns, two spaces apart, nothing cut off."""
    return "".join(f"{text}\n" for block in page for text in _plain_block(block))


def plain_line(parts: Line) -> str:
    """One line for pipes and files."""
    return "".join(escape(part.text) for part in parts.parts).rstrip()


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON in ASCII, so that nothing in it can move a cursor. NaN and infinities become null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _plain_block(block: Line | Table) -> Iterable[str]:
    if isinstance(block, Line):
        return [plain_line(block)]
    rows = [tuple([escape(cell.text) for cell in row]) for row in block.rows]
    if any(block.headings):
        rows.insert(0, block.headings)
    if not rows:
        return []
    template = "  ".join(f"%-{max(map(len, column))}s" for column in zip(*rows, strict=True))
    return [(template % row).rstrip() for row in rows]


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
