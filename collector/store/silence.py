"""Who has not reported, and whose silence has been announced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from collector.core.silence import FleetSilence, LastWord
from collector.core.status import Silence
from collector.store.collectors import load_setting, save_setting
from collector.store.store import Transaction

_FLEET_SILENCE = "fleet_silence"

_SILENCES = {silence.value: silence for silence in Silence}  # looked up faster than called
_MARKED_AT_ONCE = 1_000  # hosts in one statement


class MarkedHost(NamedTuple):
    """A host whose silence has just been marked."""

    host: int
    hostname: str
    received_at: int


def load_suspects(tx: Transaction, now: int) -> list[LastWord]:
    """The hosts that missed a report, or are part of the fleet's silence; see `core.silence.sweep`.

    The shortest interval of all spares looking up every host's own: for 100,000 hosts with one interval
    that takes 22 ms of the database's CPU time instead of 100 (MariaDB 10.11).
    """
    rows = tx.query(
        "SELECT s.host, s.received_at, h.interval_ms, h.ttl_ms, s.silence FROM host_seen s "
        "JOIN host h ON h.id = s.host WHERE s.received_at > 0 AND s.silence <> %s "
        "AND (s.silence = %s OR s.received_at < %s - (SELECT MIN(interval_ms) FROM host)) "
        "AND (s.silence = %s OR s.received_at < %s - 1.5 * h.interval_ms OR s.received_at < %s - h.ttl_ms)",
        (Silence.ALONE.value, Silence.FLEET.value, now, Silence.FLEET.value, now, now),
    )
    return [LastWord._make((*row[:-1], _SILENCES[row[-1]])) for row in rows]


def count_expected(tx: Transaction) -> int:
    """How many hosts reported before and have not been announced as silent one by one."""
    query = "SELECT COUNT(*) FROM host_seen WHERE received_at > 0 AND silence <> %s"
    return int(tx.query(query, (Silence.ALONE.value,))[0][0])


def mark(tx: Transaction, hosts: Sequence[int], silence: Silence, now: int) -> list[MarkedHost]:
    """Mark hosts as silent that still are, and were not marked so before; those marked.

    Who has an event of its own keeps it. Their rows are locked until the commit, so that a report that
    arrives meanwhile is either seen here or sees the mark.
    """
    rows = tx.query_in(
        "SELECT s.host, h.hostname, s.received_at, s.silence, h.ttl_ms FROM host_seen s "  # noqa: S608 - a constant
        f"JOIN host h ON h.id = s.host WHERE s.host IN (%s) ORDER BY s.host{tx.dialect.for_update}",
        sorted(hosts),
    )
    marked = [
        MarkedHost(host, hostname, received_at)
        for host, hostname, received_at, before, ttl in rows
        if before not in (silence, Silence.ALONE) and now - received_at > ttl
    ]
    for start in range(0, len(marked), _MARKED_AT_ONCE):
        part = [host.host for host in marked[start : start + _MARKED_AT_ONCE]]
        placeholders = ", ".join(["%s"] * len(part))
        tx.execute(
            f"UPDATE host_seen SET silence = %s, version = version + 1 WHERE host IN ({placeholders})",  # noqa: S608 - placeholders
            (silence.value, *part),
        )
    return marked


def load_fleet_silence(tx: Transaction, *, lock: bool = False) -> FleetSilence:
    """Whether the fleet counts as silent. `lock` holds the answer until commit."""
    if lock:  # a row that is not there yet locks nobody out
        tx.execute(
            f"{tx.dialect.insert_ignore} INTO setting (name, content) VALUES (%s, %s)", (_FLEET_SILENCE, "{}")
        )
    stored = load_setting(tx, _FLEET_SILENCE, lock=lock)
    return FleetSilence(**json.loads(stored)) if stored else FleetSilence()


def save_fleet_silence(tx: Transaction, fleet: FleetSilence) -> None:
    """Write down whether the fleet counts as silent."""
    save_setting(tx, _FLEET_SILENCE, json.dumps(fleet._asdict()))
