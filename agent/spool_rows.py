"""What the spool does with the rows of its file, inside a transaction that is the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from agent.backlog import Row
from agent.spool_file import SpoolCorruptError


class Deleted(NamedTuple):
    """What was deleted: bytes, reports lost if nobody had acked them, and the layouts referred to."""

    size: int
    lost: int
    layouts: set[bytes]


class Found(NamedTuple):
    """(seq, layout id, payload) of reports, their layouts, and whether a bound kept newer ones out."""

    rows: list[tuple[int, bytes, bytes]]
    layouts: dict[bytes, bytes]
    is_cut: bool


def read(
    reader: sqlite3.Connection, after: int, max_reports: int, max_bytes: int, known: Collection[bytes]
) -> Found:
    """The oldest reports after `after`, and their layouts but the known.

    In a transaction of its own. Raises SpoolCorruptError if a layout is missing.
    """
    rows: list[tuple[int, bytes, bytes]] = []
    size = 0
    is_cut = False
    reader.execute("BEGIN")  # one snapshot: a report's layout must not vanish in between
    try:
        for row in reader.execute(
            "SELECT seq, layout_id, payload FROM report WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, max_reports),
        ):
            size += len(row[2])
            if rows and size > max_bytes:
                is_cut = True
                break
            rows.append(row)
        layouts = {}
        for layout_id in {row[1] for row in rows}.difference(known):
            found = reader.execute("SELECT payload FROM layout WHERE id = ?", (layout_id,)).fetchone()
            if found is None:
                raise SpoolCorruptError("the spool lacks a layout that a report refers to")
            layouts[layout_id] = found[0]
    finally:
        reader.execute("COMMIT")
    return Found(rows, layouts, is_cut or len(rows) >= max_reports)


def insert(writer: sqlite3.Connection, rows: Iterable[Row], layouts: Mapping[bytes, bytes]) -> None:
    """Add reports, and those of `layouts` that are not there yet."""
    writer.executemany("INSERT OR IGNORE INTO layout VALUES (?, ?)", layouts.items())
    writer.executemany("INSERT INTO report VALUES (?, ?, ?, ?, ?)", rows)


def delete(writer: sqlite3.Connection, first: int, last: int) -> Deleted:
    """Delete the reports from `first` to `last`."""
    # Added up where they are: a day's backlog leaves in one go, and is not to pass through memory.
    size, lost = writer.execute(
        "SELECT total(length(payload)), total(1 + dropped) FROM report WHERE seq BETWEEN ? AND ?",
        (first, last),
    ).fetchone()
    if not lost:
        return Deleted(0, 0, set())
    layouts = writer.execute(
        "SELECT DISTINCT layout_id FROM report WHERE seq BETWEEN ? AND ?", (first, last)
    ).fetchall()
    writer.execute("DELETE FROM report WHERE seq BETWEEN ? AND ?", (first, last))
    return Deleted(int(size), int(lost), {row[0] for row in layouts})


def make_room(writer: sqlite3.Connection, size: int, oldest: int, max_size: int) -> Deleted:
    """Drop the oldest of the reports, which have `size` bytes now, until none was kept before `oldest`.

    And until at most `max_size` bytes are left, or none.
    """
    dropped = Deleted(0, 0, set())
    while first := writer.execute("SELECT seq, kept_at FROM report ORDER BY seq LIMIT 1").fetchone():
        if first[1] >= oldest and size - dropped.size <= max_size:
            break
        more = delete(writer, first[0], first[0])
        dropped = Deleted(dropped.size + more.size, dropped.lost + more.lost, dropped.layouts | more.layouts)
    return dropped


def delete_unused(writer: sqlite3.Connection, layouts: Iterable[bytes]) -> None:
    """Those of `layouts` to which no report refers any more."""
    for layout_id in layouts:
        writer.execute(
            "DELETE FROM layout WHERE id = ? AND NOT EXISTS (SELECT 1 FROM report WHERE layout_id = layout.id)",
            (layout_id,),
        )
