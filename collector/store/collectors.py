"""The collectors that share this database: heartbeats, listening times, pool sizes, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from collector.core.silence import HEARTBEAT_GRACE, listening_since
from collector.store.store import Row, Transaction

HEARTBEAT_INTERVAL = 2_000
"""Milliseconds between two heartbeats of a collector."""


class CollectorRow(NamedTuple):
    """A collector as its last heartbeat left it. Times in milliseconds by the collectors' clock."""

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


def load_live(tx: Transaction) -> list[CollectorRow]:
    """The collectors that were heard a moment ago by the database's clock, whatever their own says."""
    rows = tx.query(
        "SELECT name, address, version, pool_size, listening_since, heartbeat_at, stopped_at, database_at, "  # noqa: S608 - names of ours
        f"{tx.dialect.clock_expression} FROM collector WHERE stopped_at IS NULL ORDER BY name"
    )
    return [
        CollectorRow(*row)
        for *row, database_at, database_now in rows
        if abs(database_now - database_at) <= HEARTBEAT_GRACE
    ]


def load_time_of_others(tx: Transaction, name: str) -> int:
    """The time by the fastest live collector but `name`; 0 when there is no other.

    Rather too early than too late: a step of the database's clock adds at most a heartbeat's interval.
    """
    rows = tx.query(
        f"SELECT heartbeat_at, {tx.dialect.clock_expression} - database_at FROM collector "  # noqa: S608 - names of ours
        "WHERE stopped_at IS NULL AND name <> %s",
        (name,),
    )
    return max(
        (
            heartbeat_at + min(max(0, age), HEARTBEAT_INTERVAL)
            for heartbeat_at, age in rows
            if abs(age) <= HEARTBEAT_GRACE
        ),
        default=0,
    )


def load_listening(tx: Transaction) -> Listening:
    """The collectors' time, and since when they have been listening without a gap."""
    rows = tx.query(
        f"SELECT listening_since, heartbeat_at, stopped_at, database_at, {tx.dialect.clock_expression} FROM collector"  # noqa: S608 - names of ours
    )
    if not rows:
        return Listening(int(tx.query(f"SELECT {tx.dialect.clock_expression}")[0][0]), None)
    # All live collectors share one time, so the last word is the highest. The database's clock, which
    # may have been set since, only carries it to wherever this runs.
    _, heartbeat_at, _, database_at, database_now = max(rows, key=lambda row: row[1])
    now = heartbeat_at + max(0, database_now - database_at)
    return Listening(now, _listening_since([row[:3] for row in rows], now))


def load_listening_since(tx: Transaction, now: int) -> int | None:
    """Since when collectors have been listening without a gap, for one that knows the time itself."""
    return _listening_since(tx.query("SELECT listening_since, heartbeat_at, stopped_at FROM collector"), now)


def _listening_since(rows: Sequence[Row], now: int) -> int | None:
    if all(stopped_at for _, _, stopped_at in rows):
        return None
    heard = [(since, stopped_at or heartbeat_at) for since, heartbeat_at, stopped_at in rows]
    return listening_since(heard, now, HEARTBEAT_GRACE)


def load_setting(tx: Transaction, name: str, *, lock: bool = False) -> str | None:
    """A value that the collectors share; None if it was never set. `lock` holds it until commit."""
    locking = tx.dialect.for_update if lock else ""
    rows = tx.query(f"SELECT content FROM setting WHERE name = %s{locking}", (name,))  # noqa: S608 - a constant
    return str(rows[0][0]) if rows else None


def save_setting(tx: Transaction, name: str, content: str) -> None:
    """Set a value that the collectors share."""
    tx.execute(tx.dialect.upsert("setting", ("name",), ("content",)), (name, content))
