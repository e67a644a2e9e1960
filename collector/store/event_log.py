"""Reading events.

Nothing here relies on the order of their numbers: on a cluster, and between transactions that
commit at once, a smaller number can appear later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from collector.store.hosts import text
from collector.store.selection import ALL, Selection, within
from collector.store.store import Row, Transaction

_COLUMNS = (
    "e.id, e.hostname, h.host_id, e.at, e.kind, e.subject, e.instance, e.old_value, e.new_value, "
    "e.message, e.measured_at"
)
_EVENTS = "FROM event e LEFT JOIN host h ON h.id = e.host"


class StoredEvent(NamedTuple):
    """An event as it was written; see `core.status.Event`.

    `host_id` is None for the fleet's events and those of removed hosts. `kind` is text, because a
    newer collector may write kinds that this program does not know.
    """

    number: int
    hostname: str
    host_id: str | None
    at: int
    kind: str
    subject: str
    instance: str
    old: str
    new: str
    message: str
    measured_at: int


class Filter(NamedTuple):
    """Which events; None and empty: any. `since` in milliseconds, by the collector's clock.

    `host` is the host's number; `hostname` finds the events of a host that is no more; `hosts` are those
    that are still there.
    """

    host: int | None = None
    hostname: str | None = None
    kinds: tuple[str, ...] = ()
    since: int | None = None
    hosts: Selection = ALL


def load_events(tx: Transaction, wanted: Filter, limit: int) -> list[StoredEvent]:
    """The last events, oldest first."""
    where, parameters = _where(wanted)
    rows = tx.query(
        f"SELECT {_COLUMNS} {_EVENTS} WHERE {where} ORDER BY e.at DESC, e.id DESC LIMIT %s",
        (*parameters, limit),
    )
    return [_event(row) for row in reversed(rows)]


def event_numbers(tx: Transaction, wanted: Filter) -> list[int]:
    """The numbers of the events: what has to be read again and again when following them."""
    where, parameters = _where(wanted)
    return [row[0] for row in tx.query(f"SELECT e.id FROM event e WHERE {where}", parameters)]  # noqa: S608 - names of ours


def load_numbered(tx: Transaction, numbers: Sequence[int]) -> list[StoredEvent]:
    """The events of these numbers, oldest first."""
    rows = tx.query_in(f"SELECT {_COLUMNS} {_EVENTS} WHERE e.id IN (%s)", numbers)
    return sorted((_event(row) for row in rows), key=lambda stored: (stored.at, stored.number))


def _where(wanted: Filter) -> tuple[str, tuple[object, ...]]:
    conditions = ["1 = 1"]
    parameters: list[object] = []
    if wanted.host is not None:
        conditions.append("e.host = %s")
        parameters.append(wanted.host)
    if wanted.hostname is not None:
        conditions.append("e.hostname = %s")
        parameters.append(wanted.hostname)
    if wanted.kinds:
        conditions.append(f"e.kind IN ({', '.join(['%s'] * len(wanted.kinds))})")
        parameters += wanted.kinds
    if wanted.since is not None:
        conditions.append("e.at >= %s")
        parameters.append(wanted.since)
    of_hosts, more = within(wanted.hosts, "e.host")
    return " AND ".join(conditions) + of_hosts, (*parameters, *more)


def _event(row: Row) -> StoredEvent:
    number, hostname, host_id, at, kind, subject, instance, *rest = row
    return StoredEvent(number, hostname, host_id, at, kind, text(subject), text(instance), *rest)
