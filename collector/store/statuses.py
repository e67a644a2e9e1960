"""The previous status of hosts, and what a batch writes. Used inside one transaction per batch."""

from __future__ import annotations

import array
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from collector.core.status import CheckStatus, Event, HostStatus, Silence
from collector.store.dialect import CheckRow, EventRow, LatestRow, SeenRow
from collector.store.errors import StoreConflict
from collector.store.hosts import text
from collector.store.store import Transaction
from fleetpulse.model import CheckKey, CheckResult, Layout, State


class Versioned(NamedTuple):
    """A host's status and the version of the row that it was read from."""

    version: int
    status: HostStatus


class LatestReport(NamedTuple):
    """A host's latest report as it is stored."""

    layout: Layout
    values: tuple[float, ...]
    results: tuple[CheckResult, ...]


def load_statuses(tx: Transaction, hosts: Sequence[int]) -> dict[int, Versioned]:
    """The stored statuses of the hosts that exist.

    The version is read first: whatever changes after that makes the later write a conflict.
    """
    seen = tx.query_in(
        "SELECT s.host, s.version, s.epoch, s.seq, s.received_at, s.measured_at, s.silence, y.hash FROM host_seen s "
        "LEFT JOIN host_latest l ON l.host = s.host LEFT JOIN layout y ON y.id = l.layout WHERE s.host IN (%s)",
        hosts,
    )
    checks: dict[int, dict[CheckKey, CheckStatus]] = {}
    for host, name, instance, state, since, message, pending, count, occurrences in tx.query_in(
        "SELECT host, name, instance, state, since, message, pending, pending_count, occurrences FROM check_state "
        "WHERE host IN (%s)",
        hosts,
    ):
        key = CheckKey(sys.intern(text(name)), sys.intern(text(instance)))
        checks.setdefault(host, {})[key] = CheckStatus(
            State(state), since, message, State(pending), count, occurrences
        )
    return {
        host: Versioned(
            version,
            HostStatus(
                epoch,
                seq,
                received_at,
                measured_at,
                Silence(silence),
                layout_id or b"",
                checks.get(host, {}),
                all(status.is_calm for status in checks.get(host, {}).values()),
            ),
        )
        for host, version, epoch, seq, received_at, measured_at, silence, layout_id in seen
    }


def write_seen(tx: Transaction, rows: Iterable[SeenRow]) -> None:
    """Move the high-water marks. Raises StoreConflict if another writer moved one meanwhile.

    Sorted by key, so that two writers always lock in the same order.
    """
    ordered = sorted(rows)
    if ordered and tx.dialect.update_seen(tx.cursor, ordered) != len(ordered):
        raise StoreConflict("another collector wrote some of the same hosts")


def write_latest(tx: Transaction, rows: Iterable[LatestRow]) -> None:
    """Overwrite latest reports."""
    ordered = sorted(rows)
    if ordered:
        tx.dialect.update_latest(tx.cursor, ordered)


def write_checks(tx: Transaction, changed: Mapping[int, Mapping[CheckKey, CheckStatus | None]]) -> None:
    """Write the check statuses that differ, by host; None deletes one."""
    upserts: list[CheckRow] = []
    deletes: list[tuple[int, str, str]] = []
    for host, checks in sorted(changed.items()):
        for (name, instance), status in sorted(checks.items()):
            if status is None:
                deletes.append((host, name, instance))
            else:
                upserts.append(
                    CheckRow(
                        host,
                        name,
                        instance,
                        status.state,
                        status.since,
                        status.message,
                        status.pending,
                        status.pending_count,
                        status.occurrences,
                    )
                )
    if upserts:
        tx.dialect.upsert_checks(tx.cursor, upserts)
    tx.execute_many("DELETE FROM check_state WHERE host = %s AND name = %s AND instance = %s", deletes)


def write_events(tx: Transaction, events: Iterable[tuple[int | None, str, Event]]) -> None:
    """Append events, each with the host's number and name (None and empty: the fleet's)."""
    rows = [
        EventRow(
            event.at,
            host,
            hostname,
            event.kind,
            event.subject,
            event.instance,
            event.old,
            event.new,
            event.message,
            event.measured_at,
        )
        for host, hostname, event in events
    ]
    if rows:
        tx.dialect.insert_events(tx.cursor, rows)


def layout_number(tx: Transaction, layout: Layout) -> int:
    """The number under which a layout is stored, after storing it if it is new."""
    tx.execute(
        f"{tx.dialect.insert_ignore} INTO layout (hash, content) VALUES (%s, %s)",
        (layout.id, layout.canonical_json.encode()),
    )
    return int(tx.query("SELECT id FROM layout WHERE hash = %s", (layout.id,))[0][0])


def latest_row(host: int, layout: int, values: Sequence[float], results: Sequence[CheckResult]) -> LatestRow:
    """A report in the form that is stored."""
    packed = array.array("d", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return LatestRow(host, layout, packed.tobytes(), json.dumps(results).encode() if results else None)


def load_latest(tx: Transaction, hosts: Sequence[int]) -> dict[int, LatestReport]:
    """The latest reports of the hosts that sent one."""
    rows = tx.query_in(
        "SELECT l.host, y.content, l.series, l.results FROM host_latest l JOIN layout y ON y.id = l.layout "
        "WHERE l.host IN (%s)",
        hosts,
    )
    layouts: dict[bytes, Layout] = {}
    latest = {}
    for host, content, series, results in rows:
        layout = layouts.get(content)
        if layout is None:
            layout = layouts[content] = Layout.from_json(content)
        latest[host] = LatestReport(layout, _unpack(series), _results(results))
    return latest


def load_layouts(tx: Transaction, hosts: Sequence[int]) -> dict[int, Layout]:
    """The layouts of the latest reports of the hosts that sent one."""
    rows = tx.query_in(
        "SELECT host, layout FROM host_latest WHERE layout IS NOT NULL AND host IN (%s)", hosts
    )
    contents = tx.query_in(
        "SELECT id, content FROM layout WHERE id IN (%s)", sorted({number for _, number in rows})
    )
    layouts = {number: Layout.from_json(content) for number, content in contents}
    return {host: layouts[number] for host, number in rows if number in layouts}


def _unpack(series: bytes) -> tuple[float, ...]:
    packed = array.array("d", series)
    if sys.byteorder == "big":
        packed.byteswap()
    return tuple(packed)


def _results(stored: bytes | None) -> tuple[CheckResult, ...]:
    if not stored:
        return ()
    return tuple(CheckResult(check, State(state), message) for check, state, message in json.loads(stored))
