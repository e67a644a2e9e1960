"""One time for all collectors of a database.

Silence is a difference between stored times and now, so all live collectors keep the same time: who
starts beside others takes over theirs. Who starts alone takes its system's clock. If that was set back
since, stored times lie in the future and would hide dead hosts until the clock has caught up: they count
as having happened now. Times in milliseconds since the Unix epoch.
"""

from __future__ import annotations

from typing import NamedTuple

from collector.core.silence import HEARTBEAT_GRACE
from collector.store.collectors import load_collectors, load_time_of_others, save_setting
from collector.store.silence import load_fleet_silence, save_fleet_silence
from collector.store.store import Transaction
from collector.store.tokens import bring_tokens_back

_LAST_JOINED = "last_joined"


class Agreement(NamedTuple):
    """The time that a collector starts with.

    `others` says that it is that of collectors which live already. `brought_back` is how many hosts
    were heard in the future by it. `away` is how long no collector had been heard.
    """

    now: int
    others: bool = False
    brought_back: int = 0
    away: int = 0


def agree_on_time(tx: Transaction, name: str, system_now: int) -> Agreement:
    """The time with which the collector `name` is to start; its first heartbeat belongs to the same transaction."""
    # Two that start at once take turns here: each writes this row, so the second sees the first's heartbeat.
    save_setting(tx, _LAST_JOINED, f"{name} at {system_now}")
    theirs = load_time_of_others(tx, name)
    if theirs:
        return Agreement(theirs, others=True)
    heard = max((row.heartbeat_at for row in load_collectors(tx)), default=system_now)
    # Commands write these while no collector runs, so they may be the only ones in the future.
    _bring_identities_back(tx, system_now, heard)
    return Agreement(system_now, brought_back=_bring_back(tx, system_now), away=max(0, system_now - heard))


def _bring_identities_back(tx: Transaction, now: int, heard: int) -> None:
    """`heard` is when a collector was heard last."""
    bring_tokens_back(tx, now, heard)
    # A certificate is issued by the system's clock, which is what now is here. Whichever of a host's is the
    # newest is told by that: one of the future would do away with each that follows it.
    for table, column in (
        ("conflict", "first_at"),
        ("conflict", "last_at"),
        ("certificate", "revoked_at"),
        ("certificate", "issued_at"),
    ):
        tx.execute(f"UPDATE {table} SET {column} = %s WHERE {column} > %s", (now, now))  # noqa: S608 - names of ours


def _bring_back(tx: Transaction, now: int) -> int:
    """Let what is stored in the future have happened now; how many hosts that concerned."""
    hosts = tx.execute(
        "UPDATE host_seen SET received_at = %s, version = version + 1 WHERE received_at > %s", (now, now)
    )
    # A collector of the future is not one that was heard a moment ago.
    lost = now - HEARTBEAT_GRACE - 1
    collectors = tx.execute(
        "UPDATE collector SET heartbeat_at = %s, listening_since = %s, "
        "stopped_at = CASE WHEN stopped_at IS NULL THEN NULL ELSE %s END WHERE heartbeat_at > %s",
        (lost, lost, lost, now),
    )
    if not hosts and not collectors:
        return 0  # the rest is larger, and was written no later
    for table, column in (("host", "added_at"), ("check_state", "since"), ("event", "at")):
        tx.execute(f"UPDATE {table} SET {column} = %s WHERE {column} > %s", (now, now))  # noqa: S608 - names of ours
    fleet = load_fleet_silence(tx, lock=True)
    if max(fleet) > now:
        save_fleet_silence(tx, fleet._replace(since=min(fleet.since, now), back_at=min(fleet.back_at, now)))
    return hosts
