"""How hosts are reached over SSH, and which are due for it."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from collector.core.silence import Presence, presence
from collector.core.ssh_settings import POLLED, SettingsError, SshSettings, decode, encode
from collector.core.status import Silence
from collector.store.collectors import Listening, load_setting, save_setting
from collector.store.hosts import text
from collector.store.reading import load_groups, of_hosts
from collector.store.store import Transaction


class SshHost(NamedTuple):
    """A host that can be reached over SSH. Times and durations in milliseconds, `received_at` 0: never heard.

    `is_polled`: it has no agent, and is polled for its reports. `settings` are its own, `name` what its record is
    called, `address` where its agent reported from last. `problem` is why its stored settings cannot be used.
    """

    host: int
    host_id: str
    name: str
    address: str
    interval: int
    ttl: int
    is_polled: bool
    settings: SshSettings
    groups: tuple[str, ...]
    received_at: int = 0
    problem: str = ""


class SilentHost(NamedTuple):
    """A host with an agent that is silent, or was never heard."""

    ssh: SshHost
    added_at: int
    boot_id: str
    is_configured: bool
    """Somebody said how it is to be reached, which allows it."""


_COLUMNS = (
    "h.id, h.host_id, h.hostname, h.address, h.interval_ms, h.ttl_ms, h.agent_version, p.polled, p.settings, "
    "s.received_at"
)
_CHANGED = "ssh_version"


def save_ssh_host(tx: Transaction, host: int, settings: SshSettings, *, polled: bool) -> None:
    """Say how a host is reached, and whether it is polled for its reports."""
    upsert = tx.dialect.upsert("ssh_host", ("host",), ("polled", "settings"))
    tx.execute(upsert, (host, int(polled), encode(settings)))


def save_ssh_hosts(tx: Transaction, rows: Iterable[tuple[int, SshSettings, bool]]) -> None:
    """The same for many hosts at once."""
    upsert = tx.dialect.upsert("ssh_host", ("host",), ("polled", "settings"))
    tx.execute_many(upsert, [(host, int(polled), encode(settings)) for host, settings, polled in rows])


def forget_ssh_host(tx: Transaction, host: int) -> bool:
    """Delete what a host has of its own; whether it had anything."""
    return tx.execute("DELETE FROM ssh_host WHERE host = %s", (host,)) == 1


def load_ssh_hosts(tx: Transaction, hosts: Sequence[int] | None = None) -> list[SshHost]:
    """All hosts, or those among `hosts`, that somebody said something of, by name."""
    query = (
        f"SELECT {_COLUMNS} FROM ssh_host p JOIN host h ON h.id = p.host JOIN host_seen s ON s.host = p.host"  # noqa: S608 - names of ours
    )
    rows = tx.query(query) if hosts is None else tx.query_in(f"{query} WHERE h.id IN (%s)", hosts)
    groups = load_groups(tx, {row[0] for row in rows})
    found = [_ssh_host(row, groups.get(row[0], ())) for row in rows]
    return sorted(found, key=lambda one: (one.name, one.host_id))


def load_polled(tx: Transaction) -> list[SshHost]:
    """The hosts that are polled for their reports."""
    return [one for one in load_ssh_hosts(tx) if one.is_polled]


def load_polled_numbers(tx: Transaction, hosts: Collection[int] | None = None) -> frozenset[int]:
    """The numbers of the hosts that are polled for their reports; those among `hosts`, if given."""
    query = "SELECT p.host, h.agent_version FROM ssh_host p JOIN host h ON h.id = p.host WHERE p.polled = 1"
    rows = tx.query(query) if hosts is None else of_hosts(tx, query, hosts)
    return frozenset(host for host, version in rows if _is_polled(version, 1))


def load_given_addresses(tx: Transaction) -> dict[int, str]:
    """The addresses that were given to hosts which report from another, or from none that can be reached."""
    rows = tx.query(
        "SELECT p.host, p.settings FROM ssh_host p JOIN host h ON h.id = p.host WHERE p.polled = 0 OR "
        "h.agent_version <> %s",
        (POLLED,),
    )
    found = {}
    for host, stored in rows:
        with suppress(SettingsError):
            if address := decode(stored).address:
                found[host] = address
    return found


def load_silent_agents(tx: Transaction, listening: Listening, expected_since: int) -> list[SilentHost]:
    """The hosts with an agent that are stale, and those never heard that became known before `expected_since`.

    Who has been silent for the shortest time comes first: it is news.
    """
    # Two queries: a join looks up the hosts that are well, too, and takes the database ten times as long
    # (of 100,000 hosts 75 ms instead of 8, MariaDB 10.11).
    suspects = tx.query("SELECT host FROM host_seen WHERE silence > 0 OR received_at = 0")
    rows = tx.query_in(
        f"SELECT {_COLUMNS}, s.silence, h.added_at, h.boot_id FROM host_seen s "  # noqa: S608 - names of ours
        "JOIN host h ON h.id = s.host LEFT JOIN ssh_host p ON p.host = h.id WHERE s.host IN (%s)",
        [host for (host,) in suspects],
    )
    rows = [row for row in rows if not _is_polled(row[6], row[7])]
    groups = load_groups(tx, {row[0] for row in rows})
    found = []
    for *row, silence, added_at, boot_id in rows:
        if not row[9] and added_at >= expected_since:
            continue
        is_here = presence(row[9], row[5], Silence(silence), listening.now, listening.since)
        if is_here in (Presence.STALE, Presence.NEVER_SEEN):
            one = _ssh_host(row, groups.get(row[0], ()))
            found.append(SilentHost(one, added_at, boot_id, row[7] is not None))
    found.sort(key=lambda silent: (-(silent.ssh.received_at or silent.added_at), silent.ssh.host))
    return found


def note_change(tx: Transaction) -> None:
    """Have every collector read anew what is said of hosts, groups and their keys."""
    save_setting(tx, _CHANGED, uuid.uuid4().hex)


def load_version(tx: Transaction) -> str:
    """What differs after `note_change`."""
    return load_setting(tx, _CHANGED) or ""


def save_group_settings(tx: Transaction, name: str, settings: SshSettings) -> None:
    """Say how the hosts of a group are reached; empty settings say nothing any more."""
    if settings == SshSettings():
        tx.execute("DELETE FROM ssh_group WHERE name = %s", (name,))
    else:
        upsert = tx.dialect.upsert("ssh_group", ("name",), ("settings",))
        tx.execute(upsert, (name, encode(settings)))


def load_group_settings(tx: Transaction) -> dict[str, SshSettings]:
    """What is said of groups, by name. Settings that make no sense are left out: `load_ssh_hosts` tells."""
    found = {}
    for name, stored in tx.query("SELECT name, settings FROM ssh_group ORDER BY name"):
        try:
            found[text(name)] = decode(stored)
        except SettingsError:
            continue
    return found


def _is_polled(agent_version: str, polled: int | None) -> bool:
    """Whether no agent has spoken for the host since it was to be polled."""
    return bool(polled) and agent_version in ("", POLLED)


def _ssh_host(row: Sequence[object], groups: tuple[str, ...]) -> SshHost:
    host, host_id, name, address, interval, ttl, version, polled, stored, received_at = row
    assert isinstance(host, int)
    assert isinstance(interval, int)
    assert isinstance(ttl, int)
    assert isinstance(received_at, int)
    assert polled is None or isinstance(polled, int)
    assert stored is None or isinstance(stored, (str, bytes))
    settings, problem = SshSettings(), ""
    if stored is not None:
        try:
            settings = decode(stored)
        except SettingsError as error:
            problem = str(error)
    is_polled = _is_polled(str(version), polled)
    return SshHost(
        host,
        str(host_id),
        str(name),
        str(address),
        interval,
        ttl,
        is_polled,
        settings,
        groups,
        received_at,
        problem,
    )
