"""A host's identity in the database: rows made at Hello, facts, removal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from collector.core.status import HostRecord
from collector.store.errors import StoreConflict
from collector.store.store import Row, Transaction
from fleetpulse.model import Facts

# What a Hello says of the machine, in the order of `_place`; the name has a rule of its own.
_PLACE = "machine_id, boot_id, agent_version, address, interval_ms, ttl_ms, hardware_id, instance, collector"
_COLUMNS = f"hostname, own_name, {_PLACE}"
_SET = ", ".join(f"{column} = %s" for column in _COLUMNS.split(", "))
_AS_READ = " AND ".join(f"{column} = %s" for column in _COLUMNS.split(", "))


class StoredHost(NamedTuple):
    """A host's row: its number in this database, its identity as the last Hello gave it, and its name.

    `name` is what the record is called, `record.hostname` what the machine calls itself; `own_name` is that
    again if an admin gave the name, else empty. `record.groups` are those that the Hello named and the
    `assigned` ones, of which it named some, too: `named`.
    """

    host: int
    record: HostRecord
    name: str
    own_name: str = ""
    assigned: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


class Caller(NamedTuple):
    """What a host's record is called, and the run of the agent that said Hello last."""

    name: str
    instance: str


def find_hosts(tx: Transaction, host_ids: Sequence[str]) -> dict[str, StoredHost]:
    """The stored hosts among `host_ids`."""
    rows = tx.query_in(f"SELECT id, host_id, {_COLUMNS} FROM host WHERE host_id IN (%s)", host_ids)  # noqa: S608 - names of ours
    numbers = [row[0] for row in rows]
    groups, assigned = _groups(tx, "host_group", numbers), load_assigned(tx, numbers)
    return {row[1]: _stored(row, groups.get(row[0], ()), assigned.get(row[0], {})) for row in rows}


def add_hosts(tx: Transaction, records: Sequence[HostRecord], now: int) -> int:
    """Make the rows of new hosts; how many.

    Somebody else may be making the same ones: then theirs stay.
    """
    ignore = tx.dialect.insert_ignore
    added = tx.execute_many(
        f"{ignore} INTO host (host_id, {_COLUMNS}, added_at) VALUES (%s, %s, %s, {_placeholders(_PLACE)}, %s)",
        [
            (r.host_id, r.hostname, "", *_place(r), now)
            for r in sorted(records, key=lambda record: record.host_id)
        ],
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


def update_host(tx: Transaction, known: StoredHost, said: HostRecord) -> StoredHost:
    """Write what a Hello says now, where it differs; what is stored then.

    A record that an admin named keeps its name, and assigned groups stay. Raises StoreConflict if it is
    not stored as `known` any more.
    """
    groups = tuple(sorted({*said.groups, *known.assigned}))
    named = tuple(group for group in known.assigned if group in said.groups)
    record = replace(said, groups=groups)
    if record == known.record and named == known.named:
        return known
    own_name = said.hostname if known.own_name else ""
    name = known.name if known.own_name else said.hostname
    before = (known.name, known.own_name, *_place(known.record))
    after = (name, own_name, *_place(record))
    if before != after:
        updated = tx.execute(
            f"UPDATE host SET {_SET} WHERE id = %s AND {_AS_READ}",  # noqa: S608 - names of ours
            (*after, known.host, *before),
        )
        if updated != 1:
            raise StoreConflict("another collector wrote the same Hello, or the host was removed")
    if groups != known.record.groups:
        tx.execute("DELETE FROM host_group WHERE host = %s", (known.host,))
        _write_groups(tx, known.host, groups)
    if named != known.named:
        tx.execute_many(
            "UPDATE assigned_group SET named = %s WHERE host = %s AND name = %s",
            [(int(group in named), known.host, group) for group in known.assigned],
        )
    return StoredHost(known.host, record, name, own_name, known.assigned, named)


def load_assigned(tx: Transaction, hosts: Sequence[int]) -> dict[int, dict[str, bool]]:
    """The groups that each of the hosts keeps whatever its Hello says, and whether that named them, too."""
    found: dict[int, dict[str, bool]] = {}
    rows = tx.query_in("SELECT host, name, named FROM assigned_group WHERE host IN (%s)", hosts)
    for host, name, named in sorted((host, text(name), bool(named)) for host, name, named in rows):
        found.setdefault(host, {})[name] = named
    return found


def assign_groups(tx: Transaction, host: int, groups: Sequence[str]) -> None:
    """Add groups that the host keeps whatever its Hello says."""
    add_to_groups(tx, [(host, group) for group in groups])


def add_to_groups(tx: Transaction, rows: Sequence[tuple[int, str]]) -> None:
    """The same for many hosts at once."""
    there = _groups(tx, "host_group", sorted({host for host, _ in rows}))
    ignore = tx.dialect.insert_ignore
    tx.execute_many(
        f"{ignore} INTO assigned_group (host, name, named) VALUES (%s, %s, %s)",
        [(host, name, int(name in there.get(host, ()))) for host, name in rows],
    )
    tx.execute_many(f"{ignore} INTO host_group (host, name) VALUES (%s, %s)", rows)


def take_from_groups(tx: Transaction, rows: Sequence[tuple[int, str]]) -> None:
    """Take hosts out of groups."""
    for table in ("assigned_group", "host_group"):
        delete_named(tx, table, rows)


def unassign_groups(tx: Transaction, rows: Sequence[tuple[int, str]]) -> None:
    """Leave it to their agents whether hosts are in groups."""
    delete_named(tx, "assigned_group", rows)


def load_heard(tx: Transaction, hosts: Sequence[int]) -> dict[int, int]:
    """When each host's last report came, in milliseconds (0: never)."""
    return dict(tx.query_in("SELECT host, received_at FROM host_seen WHERE host IN (%s)", hosts))


def load_callers(tx: Transaction, hosts: Sequence[int]) -> dict[int, Caller]:
    """Under what name, and by which run of its agent, each host reports since its last Hello."""
    rows = tx.query_in("SELECT id, hostname, instance FROM host WHERE id IN (%s)", hosts)
    return {host: Caller(name, instance) for host, name, instance in rows}


def remove_host(tx: Transaction, host: int) -> bool:
    """Delete a host and all that is stored of it but its events; False if there is none."""
    return tx.execute("DELETE FROM host WHERE id = %s", (host,)) == 1


def remove_unheard(tx: Transaction, hosts: Sequence[int]) -> set[int]:
    """Delete those of the hosts that never had a report; their numbers."""
    rows = tx.query_in(
        f"SELECT host FROM host_seen WHERE received_at = 0 AND host IN (%s){tx.dialect.for_update}",  # noqa: S608 - names of ours
        sorted(hosts),
    )
    unheard = [host for (host,) in rows]
    tx.execute_in("DELETE FROM host WHERE id IN (%s)", unheard)
    return set(unheard)


def delete_named(tx: Transaction, table: str, rows: Sequence[tuple[int, str]]) -> None:
    """Delete the rows of these hosts and names, a name's at once."""
    hosts_of: dict[str, list[int]] = {}
    for host, name in rows:
        hosts_of.setdefault(name, []).append(host)
    for name, hosts in sorted(hosts_of.items()):
        tx.execute_in(f"DELETE FROM {table} WHERE name = %s AND host IN (%s)", sorted(hosts), (name,))  # noqa: S608 - names of ours


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


def _groups(tx: Transaction, table: str, hosts: Sequence[int]) -> dict[int, tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for host, name in tx.query_in(f"SELECT host, name FROM {table} WHERE host IN (%s)", hosts):  # noqa: S608 - names of ours
        groups.setdefault(host, []).append(text(name))
    return {host: tuple(sorted(names)) for host, names in groups.items()}


def _place(record: HostRecord) -> tuple[str | int, ...]:
    return (
        record.machine_id,
        record.boot_id,
        record.agent_version,
        record.address,
        record.interval,
        record.ttl,
        record.hardware_id,
        record.instance,
        record.collector,
    )


def _placeholders(columns: str) -> str:
    return ", ".join(["%s"] * len(columns.split(", ")))


def _stored(row: Row, groups: tuple[str, ...], assigned: Mapping[str, bool]) -> StoredHost:
    host, host_id, name, own_name, machine_id, boot_id, agent_version, address, interval, ttl, *rest = row
    hardware_id, instance, collector = rest
    record = HostRecord(
        host_id,
        own_name or name,
        machine_id,
        boot_id,
        agent_version,
        address,
        interval,
        ttl,
        groups,
        hardware_id,
        instance,
        collector,
    )
    named = tuple(group for group, is_named in assigned.items() if is_named)
    return StoredHost(host, record, name, own_name, tuple(assigned), named)
