"""A host's identity in the database: rows made at Hello, facts, removal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from collector.core.status import HostRecord
from collector.store.errors import StoreConflict
from collector.store.store import Row, Transaction
from fleetpulse.model import Facts

_COLUMNS = "id, host_id, hostname, machine_id, boot_id, agent_version, address, interval_ms, ttl_ms"


class StoredHost(NamedTuple):
    """A host's row: its number in this database, and its identity as the last Hello gave it."""

    host: int
    record: HostRecord


def find_hosts(tx: Transaction, host_ids: Sequence[str]) -> dict[str, StoredHost]:
    """The stored hosts among `host_ids`."""
    rows = tx.query_in(f"SELECT {_COLUMNS} FROM host WHERE host_id IN (%s)", host_ids)  # noqa: S608 - names of ours
    groups = _groups(tx, [row[0] for row in rows])
    return {row[1]: StoredHost(row[0], _record(row, groups.get(row[0], ()))) for row in rows}


def add_hosts(tx: Transaction, records: Sequence[HostRecord], now: int) -> int:
    """Make the rows of new hosts; how many.

    Somebody else may be making the same ones: then theirs stay.
    """
    ignore = tx.dialect.insert_ignore
    added = tx.execute_many(
        f"{ignore} INTO host (host_id, hostname, machine_id, boot_id, agent_version, address, interval_ms, ttl_ms, "
        "added_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [(r.host_id, *_identity(r), now) for r in sorted(records, key=lambda record: record.host_id)],
    )
    rows = tx.query_in("SELECT id, host_id FROM host WHERE host_id IN (%s)", [r.host_id for r in records])
    numbers = {host_id: host for host, host_id in rows}
    hosts = sorted((host,) for host in numbers.values())
    tx.execute_many(f"{ignore} INTO host_seen (host) VALUES (%s)", hosts)
    tx.execute_many(f"{ignore} INTO host_latest (host) VALUES (%s)", hosts)
    for record in records:
        _write_groups(tx, numbers[record.host_id], record.groups)
    return added


def list_hosts(tx: Transaction) -> list[tuple[int, str, str]]:
    """Every host as (its number, host_id, hostname)."""
    return [
        (host, host_id, hostname)
        for host, host_id, hostname in tx.query("SELECT id, host_id, hostname FROM host")
    ]


def update_host(tx: Transaction, host: int, old: HostRecord, new: HostRecord) -> None:
    """Overwrite a host's identity with what its Hello says now, if it differs.

    Raises StoreConflict if it is not stored as `old` any more.
    """
    if old == new:
        return
    before, after = _identity(old), _identity(new)
    if before != after:
        updated = tx.execute(
            "UPDATE host SET hostname = %s, machine_id = %s, boot_id = %s, agent_version = %s, address = %s, "
            "interval_ms = %s, ttl_ms = %s WHERE id = %s AND hostname = %s AND machine_id = %s AND boot_id = %s "
            "AND agent_version = %s AND address = %s AND interval_ms = %s AND ttl_ms = %s",
            (*after, host, *before),
        )
        if updated != 1:
            raise StoreConflict("another collector wrote the same Hello, or the host was removed")
    if old.groups != new.groups:
        tx.execute("DELETE FROM host_group WHERE host = %s", (host,))
        _write_groups(tx, host, new.groups)


def remove_host(tx: Transaction, host: int) -> bool:
    """Delete a host and all that is stored of it but its events; False if there is none."""
    return tx.execute("DELETE FROM host WHERE id = %s", (host,)) == 1


def facts_hash(facts: Facts) -> bytes:
    """16 bytes that differ when the facts do."""
    return hashlib.blake2b(json.dumps(sorted(facts.items())).encode(), digest_size=16).digest()


def load_facts_hashes(tx: Transaction, hosts: Sequence[int]) -> dict[int, bytes]:
    """The hash of each host's stored facts; empty where it never sent any."""
    return {
        host: known or b""
        for host, known in tx.query_in("SELECT id, facts_hash FROM host WHERE id IN (%s)", hosts)
    }


def load_facts(tx: Transaction, host: int) -> dict[str, str]:
    """A host's stored facts."""
    rows = tx.query("SELECT name, content FROM host_fact WHERE host = %s", (host,))
    return {text(name): content for name, content in rows}


def write_facts(tx: Transaction, host: int, changed: Mapping[str, str | None], new_hash: bytes) -> None:
    """Write the facts that differ; None deletes one."""
    upsert = tx.dialect.upsert("host_fact", ("host", "name"), ("content",))
    tx.execute_many(
        upsert, [(host, name, value) for name, value in sorted(changed.items()) if value is not None]
    )
    tx.execute_many(
        "DELETE FROM host_fact WHERE host = %s AND name = %s",
        [(host, name) for name, value in sorted(changed.items()) if value is None],
    )
    tx.execute("UPDATE host SET facts_hash = %s WHERE id = %s", (new_hash, host))


def text(value: str | bytes) -> str:
    """A name from a column that MariaDB keeps as bytes and SQLite as text."""
    return value.decode() if isinstance(value, bytes) else value


def _write_groups(tx: Transaction, host: int, groups: Sequence[str]) -> None:
    tx.execute_many(
        f"{tx.dialect.insert_ignore} INTO host_group (host, name) VALUES (%s, %s)",
        [(host, group) for group in groups],
    )


def _groups(tx: Transaction, hosts: Sequence[int]) -> dict[int, tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for host, name in tx.query_in("SELECT host, name FROM host_group WHERE host IN (%s)", hosts):
        groups.setdefault(host, []).append(text(name))
    return {host: tuple(sorted(names)) for host, names in groups.items()}


def _identity(record: HostRecord) -> tuple[str | int, ...]:
    return (
        record.hostname,
        record.machine_id,
        record.boot_id,
        record.agent_version,
        record.address,
        record.interval,
        record.ttl,
    )


def _record(row: Row, groups: tuple[str, ...]) -> HostRecord:
    _, host_id, hostname, machine_id, boot_id, agent_version, address, interval, ttl = row
    return HostRecord(host_id, hostname, machine_id, boot_id, agent_version, address, interval, ttl, groups)
