"""Pages on a terminal, through rich: colours by state, tables that fit the width."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from rich.console import Console, Group, RenderableType
from rich.live import Live
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


def console(*, color: bool) -> Console:
    """Standard output. Markup and emoji codes stay what they are: text from hosts."""
    return Console(no_color=not color, markup=False, emoji=False, highlight=False)


def show(page: Page, *, color: bool) -> None:
    """Print a page."""
    output = console(color=color)
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
                rows = max(3, output.size.height - _LINES_BESIDE_ROWS)
                try:
                    drawn: RenderableType = Group(*map(_block, look().page(rows)))
                except StoreError as error:
                    drawn = _text((Cell("UNKNOWN", "unknown"), Cell(f": {error}; trying again")))
                live.update(drawn, refresh=True)
                select.select([told], [], [], interval)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)
        os.close(tell)


def _block(block: Line | Table) -> RenderableType:
    if isinstance(block, Line):
        return _text(block.parts)
    table = RichTable(
        box=None, pad_edge=False, show_header=any(block.headings), header_style="dim", padding=(0, 2, 0, 0)
    )
    for number, heading in enumerate(block.headings):
        is_last = number == len(block.headings) - 1
        table.add_column(heading, overflow="fold" if is_last else "ellipsis", no_wrap=not is_last)
    for row in block.rows:
        table.add_row(*(_text((cell,)) for cell in row))
    return table


def _text(parts: tuple[Cell, ...]) -> Text:
    return Text.assemble(*((escape(part.text), _STYLES.get(part.style, "")) for part in parts))
