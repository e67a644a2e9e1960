"""Machines that say Hello as a host that is alive elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from collector.store.store import Row, Transaction

_COLUMNS = "host, place, hostname, address, machine_id, hardware_id, boot_id, instance, first_at, last_at"


class ConflictRow(NamedTuple):
    """One such machine, from its Hello. `place` is the hash of what tells it from others; see core.identity."""

    host: int
    place: bytes
    hostname: str
    address: str
    machine_id: str
    hardware_id: str
    boot_id: str
    instance: str
    first_at: int
    last_at: int


def load_conflicts(tx: Transaction, hosts: Sequence[int] | None = None) -> dict[int, list[ConflictRow]]:
    """The machines in conflict with these hosts, or with any; each host's latest first."""
    if hosts is None:
        rows = tx.query(f"SELECT {_COLUMNS} FROM conflict")  # noqa: S608 - names of ours
    else:
        rows = tx.query_in(f"SELECT {_COLUMNS} FROM conflict WHERE host IN (%s)", hosts)  # noqa: S608 - names of ours
    found: dict[int, list[ConflictRow]] = {}
    for row in sorted(map(_row, rows), key=lambda row: row.last_at, reverse=True):
        found.setdefault(row.host, []).append(row)
    return found


def save_conflict(tx: Transaction, row: ConflictRow) -> None:
    """Note that a machine has tried, again or for the first time; the first time is kept."""
    updated = tx.execute(
        "UPDATE conflict SET hostname = %s, address = %s, machine_id = %s, hardware_id = %s, boot_id = %s, "
        "instance = %s, last_at = %s WHERE host = %s AND place = %s",
        (*row[2:8], row.last_at, row.host, row.place),
    )
    if not updated:
        tx.execute(
            f"{tx.dialect.insert_ignore} INTO conflict ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            row,
        )


def have_ended(tx: Transaction, before: int) -> bool:
    """Whether there are machines that have not tried since that moment."""
    return bool(tx.query("SELECT 1 FROM conflict WHERE last_at < %s LIMIT 1", (before,)))


def end_conflicts(tx: Transaction, before: int) -> list[ConflictRow]:
    """Forget the machines that have not tried since that moment; those that nobody else forgot before."""
    rows = [
        _row(row)
        for row in tx.query(f"SELECT {_COLUMNS} FROM conflict WHERE last_at < %s", (before,))  # noqa: S608 - names of ours
    ]
    return [
        row
        for row in sorted(rows)
        if tx.execute(
            "DELETE FROM conflict WHERE host = %s AND place = %s AND last_at < %s",
            (row.host, row.place, before),
        )
    ]


def _row(row: Row) -> ConflictRow:
    return ConflictRow(row[0], bytes(row[1]), *row[2:])
