"""The collectors that share this database: heartbeats, listening times, pool sizes, settings."""

from __future__ import annotations

from typing import NamedTuple

from collector.core.silence import listening_since
from collector.store.store import Transaction

HEARTBEAT_INTERVAL = 2_000
"""Milliseconds between two heartbeats of a collector."""

HEARTBEAT_GRACE = 5 * HEARTBEAT_INTERVAL
"""Milliseconds without a heartbeat after which a collector counts as not listening."""


class CollectorRow(NamedTuple):
    """A collector as its last heartbeat left it. Times in milliseconds by its own clock."""

    name: str
    address: str
    version: str
    pool_size: int
    listening_since: int
    heartbeat_at: int
    stopped_at: int | None


class Listening(NamedTuple):
    """What can be said of time and silence from the database alone.

    `now` is the time by the clock of the collector that was heard last, wherever the reader runs.
    `since` is when unbroken listening began; None when no collector listens now.
    """

    now: int
    since: int | None


def heartbeat(tx: Transaction, row: CollectorRow) -> None:
    """Write that this collector listens."""
    database_at = tx.query(f"SELECT {tx.dialect.clock_expression}")[0][0]
    upsert = tx.dialect.upsert(
        "collector",
        ("name",),
        ("address", "version", "pool_size", "listening_since", "heartbeat_at", "stopped_at", "database_at"),
    )
    tx.execute(upsert, (*row, database_at))


def load_collectors(tx: Transaction) -> list[CollectorRow]:
    """Every collector that ever wrote a heartbeat here."""
    rows = tx.query(
        "SELECT name, address, version, pool_size, listening_since, heartbeat_at, stopped_at FROM collector ORDER BY name"
    )
    return [CollectorRow(*row) for row in rows]


def forget_collector(tx: Transaction, name: str) -> None:
    """Delete a collector that will not come back."""
    tx.execute("DELETE FROM collector WHERE name = %s", (name,))


def load_listening(tx: Transaction) -> Listening:
    """The collectors' time, and since when they have been listening without a gap."""
    rows = tx.query(
        f"SELECT listening_since, heartbeat_at, stopped_at, database_at, {tx.dialect.clock_expression} FROM collector"  # noqa: S608 - names of ours
    )
    if not rows:
        return Listening(int(tx.query(f"SELECT {tx.dialect.clock_expression}")[0][0]), None)
    # The database's clock carries the collector's to wherever this runs.
    _, heartbeat_at, _, database_at, database_now = max(rows, key=lambda row: row[3])
    now = heartbeat_at + max(0, database_now - database_at)
    if all(stopped_at for _, _, stopped_at, _, _ in rows):
        return Listening(now, None)
    heard = [(since, stopped_at or beat_at) for since, beat_at, stopped_at, _, _ in rows]
    return Listening(now, listening_since(heard, now, HEARTBEAT_GRACE))


def load_setting(tx: Transaction, name: str, *, lock: bool = False) -> str | None:
    """A value that the collectors share; None if it was never set. `lock` holds it until commit."""
    locking = tx.dialect.for_update if lock else ""
    rows = tx.query(f"SELECT content FROM setting WHERE name = %s{locking}", (name,))  # noqa: S608 - a constant
    return str(rows[0][0]) if rows else None


def save_setting(tx: Transaction, name: str, content: str) -> None:
    """Set a value that the collectors share."""
    tx.execute(tx.dialect.upsert("setting", ("name",), ("content",)), (name, content))
