"""Which collector polls which hosts: leases on shares of the fleet, in a table, by the collectors' time.

A host falls into the share `host % SHARES`. Who holds a share until some moment polls its hosts, and must have
ended every poll of them by then, unless it has prolonged the lease before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from collector.store.store import Transaction

SHARES = 64
LEASE = 20_000
"""Milliseconds for which shares are held. A poller that dies keeps its hosts unpolled for so long at most."""
RENEW = 4_000
"""Milliseconds between two calls of `take_shares`."""

_HANDOVER = 2_000  # milliseconds
_GONE = 3 * RENEW  # milliseconds without a call after which a poller does not count any more


class Poller(NamedTuple):
    """One life of a collector that polls."""

    collector: str
    run: str


def share_of(host: int) -> int:
    """The share into which a host falls."""
    return host % SHARES


def take_shares(tx: Transaction, me: Poller, now: int) -> frozenset[int]:
    """Prolong what this poller holds, give back what is too much, take what is free; what it holds until now + LEASE.

    Every live poller gets as many as the others, give or take one. What is given back stays nobody's for a
    moment, in which its last polls end.
    """
    if int(tx.query("SELECT COUNT(*) FROM ssh_share")[0][0]) < SHARES:
        tx.execute_many(
            f"{tx.dialect.insert_ignore} INTO ssh_share (share, collector, run, until) VALUES (%s, '', '', 0)",
            [(share,) for share in range(SHARES)],
        )
    tx.execute(
        tx.dialect.upsert("ssh_poller", ("run",), ("collector", "seen_at")), (me.run, me.collector, now)
    )
    tx.execute("DELETE FROM ssh_poller WHERE seen_at < %s", (now - 10 * LEASE,))
    live = sorted(
        run for (run,) in tx.query("SELECT run FROM ssh_poller WHERE seen_at >= %s", (now - _GONE,))
    )
    rows = tx.query(f"SELECT share, run, until FROM ssh_share ORDER BY share{tx.dialect.for_update}")  # noqa: S608 - names of ours
    # Of a number that does not divide evenly, the first pollers get one more.
    fair = SHARES // len(live) + (live.index(me.run) < SHARES % len(live))
    held = [share for share, run, _ in rows if run == me.run]
    # Every so many, not those at the end: hosts are numbered in order, and so are their shares.
    excess = max(0, len(held) - fair)
    surplus = [held[turn * len(held) // excess] for turn in range(excess)]
    free = [share for share, run, until in rows if run != me.run and until <= now]
    kept = [share for share in held if share not in surplus]
    taken = free[: max(0, fair - len(kept))]
    _write(tx, surplus, "", "", now + _HANDOVER)
    mine = sorted([*kept, *taken])
    _write(tx, mine, me.collector, me.run, now + LEASE)
    return frozenset(mine)


def give_back_shares(tx: Transaction, me: Poller) -> None:
    """Hold nothing any more, so that others need not wait for the lease to end."""
    tx.execute("UPDATE ssh_share SET collector = '', run = '', until = 0 WHERE run = %s", (me.run,))
    tx.execute("DELETE FROM ssh_poller WHERE run = %s", (me.run,))


def load_holders(tx: Transaction) -> dict[int, str]:
    """The collector that holds each share, also if its lease has ended since."""
    return {
        share: collector
        for share, collector in tx.query("SELECT share, collector FROM ssh_share")
        if collector
    }


def _write(tx: Transaction, shares: Collection[int], collector: str, run: str, until: int) -> None:
    if shares:
        placeholders = ", ".join(["%s"] * len(shares))
        tx.execute(
            f"UPDATE ssh_share SET collector = %s, run = %s, until = %s WHERE share IN ({placeholders})",  # noqa: S608 - names of ours
            (collector, run, until, *shares),
        )
