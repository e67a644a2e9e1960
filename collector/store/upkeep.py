"""What keeps the database from growing without end, in small transactions."""

from __future__ import annotations

from collector.store.certificates import forget_expired
from collector.store.store import Store
from collector.store.tokens import forget_ended_tokens

AT_ONCE = 1_000
"""Rows that one call deletes at most: short enough not to hold up the writers."""


def delete_old_events(store: Store, before: int) -> int:
    """Delete the oldest events from before that time (milliseconds); how many."""
    with store.transaction() as tx:
        rows = tx.query("SELECT id FROM event WHERE at < %s ORDER BY at LIMIT %s", (before, AT_ONCE))
        tx.execute_many("DELETE FROM event WHERE id = %s", rows)
    return len(rows)


def delete_unused_layouts(store: Store) -> int:
    """Delete layouts that no host's latest report refers to; how many.

    A writer that is about to refer to one meets a broken foreign key, and repeats its batch.
    """
    with store.transaction() as tx:
        rows = tx.query(
            "SELECT y.id FROM layout y LEFT JOIN host_latest l ON l.layout = y.id WHERE l.host IS NULL LIMIT %s",
            (AT_ONCE,),
        )
        tx.execute_many("DELETE FROM layout WHERE id = %s", rows)
    return len(rows)


def delete_ended_credentials(store: Store, before: int) -> int:
    """Delete certificates and tokens that expired before that time (milliseconds); how many of either at most.

    Certificates expire by the clocks of those who check them, tokens by the collectors' time: the time has to
    be past by both.
    """
    with store.transaction() as tx:
        return max(forget_expired(tx, before, AT_ONCE), forget_ended_tokens(tx, before, AT_ONCE))
