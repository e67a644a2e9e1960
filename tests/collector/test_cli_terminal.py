"""Tables on terminals of any width."""

from __future__ import annotations

import pytest
from rich.console import Console

from collector.cli import terminal
from collector.cli.output import Answer, Cell, Line, Page, Table, line

LONG = "a-host-whose-name-has-37-characters--"
WHY = "host dead: 192.0.2.7 port 22: No route to host"
STALE = Table(
    ("HOST", "PRESENCE", "FOR", "SINCE", "LAST STATE", "ADDRESS", "GROUPS", "WHY"),
    [
        [
            Cell(name),
            Cell("stale"),
            Cell("5m 3s"),
            Cell("2025-01-02 03:04:05"),
            Cell("OK"),
            Cell("192.0.2.7"),
            Cell("-"),
            Cell(why),
        ]
        for name, why in (("web-1", WHY), (LONG, WHY), ("web-2", "-"))
    ],
)


def drawn(block: Line | Table, width: int) -> list[str]:
    console = Console(width=width, no_color=True, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(terminal._block(block))
    return [text.rstrip() for text in captured.get().splitlines()]


@pytest.mark.parametrize("width", [80, 100])
def test_what_does_not_fit_beside_the_columns_stands_below(width: int) -> None:
    lines = drawn(STALE, width)
    assert lines[0].startswith("HOST")
    assert "WHY" not in lines[0]
    assert f"{LONG}  stale     5m 3s  2025-01-02 03:04:05" in "\n".join(lines)
    assert " ".join(" ".join(lines).split()).count(f"WHY {WHY}") == 2
    assert "…" not in "".join(lines)
    assert all(len(text) <= width for text in lines)


def test_a_wide_terminal_has_room() -> None:
    lines = drawn(STALE, 200)
    assert len(lines) == 4
    assert lines[2].endswith(WHY)


def test_a_table_of_few_columns_keeps_room_for_the_last() -> None:
    table = Table(("NAMES", "KIND", "WHY"), [[Cell("x" * 90), Cell("host"), Cell("word " * 20)]])
    lines = drawn(table, 80)
    assert "…" in lines[1]
    assert "".join(lines[1:]).count("word") == 20
    assert all(len(text) <= 80 for text in lines)


@pytest.mark.parametrize(
    ("widths", "room", "beside", "found"),
    [
        ([5, 5, 5, 5, 60], 60, 5, [5, 5, 5, 5, 32]),
        ([30, 5, 5, 5, 60], 60, 4, None),
        ([50, 50, 5, 5, 60], 60, 2, None),
        ([90, 60], 60, 2, [29, 29]),
        ([1, 1], 1, 2, [1, 1]),
    ],
)
def test_widths(widths: list[int], room: int, beside: int, found: list[int] | None) -> None:
    assert terminal.columns_beside(widths, room) == beside
    assert found is None or terminal.shrunk(widths, room) == found


def test_a_screen_shows_as_many_rows_as_it_holds() -> None:
    class Many(Answer):
        def page(self, rows: int | None) -> Page:
            return [
                line("top"),
                STALE._replace(rows=list(STALE.rows) * 30)._replace(rows=(list(STALE.rows) * 30)[:rows]),
            ]

    console = Console(width=100, height=24)
    assert len(console.render_lines(terminal._fitting(Many(), console))) <= 24
