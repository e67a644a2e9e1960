"""Pages on a terminal, through rich: colours by state, tables that fit the width."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from collector.cli.output import Answer, Cell, Line, Page, Table
from collector.core.render import escape
from collector.store.errors import StoreError

_STYLES = {
    "ok": "green",
    "warning": "yellow",
    "critical": "bold red",
    "unknown": "magenta",
    "dim": "dim",
    "strong": "bold",
}
_LINES_BESIDE_ROWS = 9  # summary, notes, heading and rule of a table
_GAP = 2  # blanks between two columns
_LEAST = 30  # characters that the last column gets, if it has so many
_NARROW = 4  # columns up to which a table that is too wide is shortened, not folded


def console(*, color: bool, aside: bool = False) -> Console:
    """Standard output, or `aside` standard error. Markup and emoji codes stay what they are: text from hosts."""
    return Console(stderr=aside, no_color=not color, markup=False, emoji=False, highlight=False)


def show(page: Page, *, color: bool, aside: bool = False) -> None:
    """Print a page."""
    output = console(color=color, aside=aside)
    for block in page:
        output.print(_block(block), soft_wrap=isinstance(block, Line))


def watch(look: Callable[[], Answer], interval: float, *, color: bool) -> None:
    """Show what `look` finds, redrawn in place every `interval` seconds until Ctrl-C or SIGTERM.

    A database that cannot be had for a while is said so, and tried again.
    """
    output = console(color=color)
    # A pipe, because a handler interrupts whatever is going on: one that waits for a lock waits for ever.
    told, tell = os.pipe()
    os.set_blocking(tell, False)

    def end(_number: int, _frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            os.write(tell, b"x")

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Live(console=output, screen=True, auto_refresh=False) as live:
            while not select.select([told], [], [], 0)[0]:
                try:
                    drawn = _fitting(look(), output)
                except StoreError as error:
                    drawn = _text((Cell("UNKNOWN", "unknown"), Cell(f": {error}; trying again")))
                live.update(drawn, refresh=True)
                select.select([told], [], [], interval)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)
        os.close(tell)


def _fitting(answer: Answer, output: Console) -> RenderableType:
    """As many rows of an answer as the screen holds: one may take several lines."""
    rows = max(3, output.size.height - _LINES_BESIDE_ROWS)
    while True:
        drawn = Group(*map(_block, answer.page(rows)))
        surplus = len(output.render_lines(drawn, pad=False)) - output.size.height
        if surplus <= 0 or rows <= 3:
            return drawn
        rows = max(3, rows - (surplus + 1) // 2)


def _block(block: Line | Table) -> RenderableType:
    return _text(block.parts) if isinstance(block, Line) else _Fitted(block)


class _Fitted:
    """A table in the width that there is."""

    def __init__(self, table: Table):
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """In columns; those at the end that do not fit on lines of their own, below each row."""
        table = self._table
        widths = _widths(table)
        beside = columns_beside(widths, options.max_width)
        drawn = RichTable(
            box=None,
            pad_edge=False,
            show_header=any(table.headings),
            header_style="dim",
            padding=(0, _GAP, 0, 0),
        )
        is_whole = beside == len(widths)
        for number, (heading, width) in enumerate(
            zip(table.headings, shrunk(widths[:beside], options.max_width), strict=False)
        ):
            is_last = is_whole and number == beside - 1
            drawn.add_column(
                heading, width=width, overflow="fold" if is_last else "ellipsis", no_wrap=not is_last
            )
        for row in table.rows:
            drawn.add_row(*(_text((cell,)) for cell in row[:beside]))
        if is_whole:
            yield drawn
            return
        lines = console.render_lines(drawn, options, pad=False)
        heads = len(lines) - len(table.rows)
        for number, line in enumerate(lines):
            yield from (*line, Segment.line())
            if number >= heads:
                yield from _below(table, table.rows[number - heads], beside)


def _below(table: Table, row: Sequence[Cell], beside: int) -> RenderResult:
    """What has no room beside the other columns, under its headings."""
    parts: list[Cell] = []
    for heading, cell in zip(table.headings[beside:], row[beside:], strict=True):
        if cell.text not in ("", "-"):
            parts += [Cell("  " if parts else ""), Cell(f"{heading} ", "dim"), cell]
    if parts:
        yield Padding(_text(tuple(parts)), (0, 0, 0, 4))


def columns_beside(widths: Sequence[int], room: int) -> int:
    """How many columns of these widths are shown beside each other: of a wide table those that fit, two at least."""
    if _taken([*widths[:-1], min(widths[-1], _LEAST)]) <= room or len(widths) <= _NARROW:
        return len(widths)
    beside = len(widths) - 1
    while beside > 2 and _taken(widths[:beside]) > room:
        beside -= 1
    return beside


def shrunk(widths: Sequence[int], room: int) -> list[int]:
    """The widths that columns get: first the last gives way, then the widest of the others."""
    found = list(widths)
    surplus = _taken(found) - room
    if surplus > 0:
        given = min(surplus, max(0, found[-1] - _LEAST))
        found[-1] -= given
        surplus -= given
    while surplus > 0 and max(found) > 1:
        found[found.index(max(found))] -= 1
        surplus -= 1
    return found


def _widths(table: Table) -> list[int]:
    """How wide each column would be with nothing cut off."""
    rows = [table.headings, *([escape(cell.text) for cell in row] for row in table.rows)]
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _text(parts: tuple[Cell, ...]) -> Text:
    return Text.assemble(*((escape(part.text), _STYLES.get(part.style, "")) for part in parts))
