"""What the admin's tools read of hosts: narrow queries that suit 100,000 of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from collector.core.silence import Presence, presence
from collector.core.standing import worst
from collector.core.status import Silence
from collector.store.certificates import CertificateRow
from collector.store.collectors import Listening
from collector.store.hosts import text
from collector.store.selection import ALL, Selection, within
from collector.store.store import Row, Transaction
from fleetpulse.model import CheckKey, State

_COLUMNS = (
    "h.id, h.host_id, h.hostname, h.address, h.agent_version, h.interval_ms, h.ttl_ms, h.added_at, "
    "s.received_at, s.measured_at, s.silence"
)
_HOSTS = "FROM host h JOIN host_seen s ON s.host = h.id"
_SEEK_LIMIT = 2_000  # so many hosts are looked up one by one; for more, one scan is quicker


class HostLine(NamedTuple):
    """A host in a listing. Times in milliseconds by the collector's clock (0: never), durations too."""

    host: int
    host_id: str
    hostname: str
    address: str
    agent_version: str
    interval: int
    ttl: int
    added_at: int
    received_at: int
    measured_at: int
    silence: Silence

    def presence(self, listening: Listening) -> Presence:
        """Whether the host is silent."""
        return presence(self.received_at, self.ttl, self.silence, listening.now, listening.since)

    @property
    def silent_since(self) -> int:
        """When it was heard last; when it became known, if it never was."""
        return self.received_at or self.added_at


class LastSeen(NamedTuple):
    """As much of a host as its presence takes."""

    host: int
    received_at: int
    ttl: int
    silence: Silence


class Place(NamedTuple):
    """What tells the machine behind a host from others. `own_name` is empty if it calls itself as we do."""

    own_name: str
    machine_id: str
    hardware_id: str
    boot_id: str
    address: str
    instance: str


class CheckLine(NamedTuple):
    """A check that is not OK."""

    key: CheckKey
    state: State
    since: int
    message: str


class CheckCounts(NamedTuple):
    """The worst of a host's checks and how many are not OK."""

    worst: State
    failing: int


def load_silent(tx: Transaction, listening: Listening, wanted: Selection = ALL) -> list[HostLine]:
    """The hosts that are not fresh: silent, of unknown presence, or never seen."""
    conditions, parameters = within(wanted)
    rows = tx.query(
        f"SELECT {_COLUMNS} {_HOSTS} "
        f"WHERE (s.received_at = 0 OR s.silence <> 0 OR s.received_at + h.ttl_ms < %s){conditions}",
        (listening.now, *parameters),
    )
    return [_line(row) for row in rows]


def load_hosts(tx: Transaction, wanted: Selection = ALL, limit: int | None = None) -> list[HostLine]:
    """Every host, or the first `limit`, by name."""
    conditions, parameters = within(wanted)
    rows = tx.query(
        f"SELECT {_COLUMNS} {_HOSTS} WHERE 1 = 1{conditions} ORDER BY h.hostname, h.host_id"
        + ("" if limit is None else " LIMIT %s"),
        parameters if limit is None else (*parameters, limit),
    )
    return [_line(row) for row in rows]


def load_lines(tx: Transaction, hosts: Sequence[int]) -> dict[int, HostLine]:
    """Those of the hosts that exist."""
    rows = tx.query_in(f"SELECT {_COLUMNS} {_HOSTS} WHERE h.id IN (%s)", hosts)
    return {row[0]: _line(row) for row in rows}


def load_places(tx: Transaction, hosts: Sequence[int]) -> dict[int, Place]:
    """The machines behind those of the hosts that exist."""
    rows = tx.query_in(
        "SELECT id, own_name, machine_id, hardware_id, boot_id, address, instance FROM host WHERE id IN (%s)",
        hosts,
    )
    return {row[0]: Place._make(row[1:]) for row in rows}


def load_last_seen(tx: Transaction, wanted: Selection = ALL) -> list[LastSeen]:
    """When every host was heard last."""
    conditions, parameters = within(wanted)
    rows = tx.query(
        f"SELECT h.id, s.received_at, h.ttl_ms, s.silence {_HOSTS} WHERE 1 = 1{conditions}",
        parameters,
    )
    return [LastSeen(host, received_at, ttl, _SILENCES[silence]) for host, received_at, ttl, silence in rows]


def count_hosts(tx: Transaction, wanted: Selection = ALL) -> int:
    """How many hosts there are."""
    conditions, parameters = within(wanted)
    return int(tx.query(f"SELECT COUNT(*) FROM host h WHERE 1 = 1{conditions}", parameters)[0][0])  # noqa: S608 - names of ours


def load_current_certificates(tx: Transaction, hosts: Collection[int]) -> dict[int, CertificateRow]:
    """The newest certificate of each host that has one which is not revoked."""
    rows = of_hosts(
        tx,
        "SELECT host, fingerprint, issuer, issued_at, not_after FROM certificate WHERE revoked_at IS NULL",
        hosts,
    )
    newest: dict[int, CertificateRow] = {}
    for host, fingerprint, issuer, issued_at, not_after in rows:
        if host not in newest or newest[host].issued_at < issued_at:
            newest[host] = CertificateRow(bytes(fingerprint), host, bytes(issuer), issued_at, not_after)
    return newest


def load_certified_by(tx: Transaction, issuers: Sequence[bytes], now: int) -> list[HostLine]:
    """The hosts with a valid certificate that one of these CAs signed, whoever is silent for the longest first."""
    rows = tx.query_in(
        "SELECT host, not_after FROM certificate WHERE revoked_at IS NULL AND issuer IN (%s)", issuers
    )
    found = load_lines(tx, sorted({host for host, not_after in rows if not_after > now}))
    return sorted(found.values(), key=lambda line: (line.received_at, line.hostname, line.host_id))


def load_groups(tx: Transaction, hosts: Collection[int]) -> dict[int, tuple[str, ...]]:
    """The groups of each of the hosts that is in any."""
    rows = of_hosts(tx, "SELECT host, name FROM host_group WHERE 1 = 1", hosts)
    found: dict[int, list[str]] = {}
    for host, name in rows:
        found.setdefault(host, []).append(text(name))
    return {host: tuple(sorted(names)) for host, names in found.items()}


def load_check_counts(tx: Transaction, hosts: Collection[int]) -> dict[int, CheckCounts]:
    """The hosts among these that have a check which is not OK. Read from an index alone."""
    rows = of_hosts(tx, "SELECT host, state FROM check_state WHERE state > 0", hosts)
    counts: dict[int, CheckCounts] = {}
    for host, state in rows:
        before = counts.get(host, _NO_CHECKS)
        counts[host] = CheckCounts(worst((before.worst, State(state))), before.failing + 1)
    return counts


def load_failing(tx: Transaction, hosts: Sequence[int]) -> Mapping[int, list[CheckLine]]:
    """Every check of these hosts that is not OK, the worst first."""
    rows = tx.query_in(
        "SELECT host, name, instance, state, since, message FROM check_state WHERE state > 0 AND host IN (%s)",
        hosts,
    )
    failing: dict[int, list[CheckLine]] = {}
    for host, name, instance, state, since, message in rows:
        key = CheckKey(text(name), text(instance))
        failing.setdefault(host, []).append(CheckLine(key, State(state), since, message))
    for checks in failing.values():
        checks.sort(key=lambda check: (-check.state.severity, check.key))
    return failing


def find_named(tx: Transaction, name: str) -> list[HostLine]:
    """The hosts with exactly this hostname or UUID, in any case of letters."""
    rows = tx.query(
        f"SELECT {_COLUMNS} {_HOSTS} WHERE h.hostname = %s OR h.host_id = %s",
        (name, name.lower() if name.isascii() else ""),
    )
    # A collation may think more names equal than we do, and SQLite fewer.
    found = [_line(row) for row in rows] or find_prefixed(tx, name)
    wanted = name.casefold()
    return [line for line in found if wanted in (line.hostname.casefold(), line.host_id)]


def find_prefixed(tx: Transaction, prefix: str) -> list[HostLine]:
    """The hosts whose hostname or UUID starts with `prefix`, in any case of letters, by name."""
    escaped = "".join(f"!{c}" if c in "!%_" else c for c in prefix) + "%"
    rows = tx.query(
        f"SELECT {_COLUMNS} {_HOSTS} WHERE h.hostname LIKE %s ESCAPE '!' OR h.host_id LIKE %s ESCAPE '!' "
        "ORDER BY h.hostname, h.host_id",
        (escaped, escaped if escaped.isascii() else ""),
    )
    return [_line(row) for row in rows]


def database_clock(tx: Transaction) -> int:
    """The time by the database's clock, in milliseconds since the Unix epoch."""
    return int(tx.query(f"SELECT {tx.dialect.clock_expression}")[0][0])


_NO_CHECKS = CheckCounts(State.OK, 0)
_SILENCES = {silence.value: silence for silence in Silence}  # looked up faster than called


def _line(row: Row) -> HostLine:
    return HostLine._make((*row[:-1], _SILENCES[row[-1]]))


def of_hosts(tx: Transaction, query: str, hosts: Collection[int]) -> list[Row]:
    """The rows of `query` whose first column, `host`, is one of the hosts."""
    if len(hosts) <= _SEEK_LIMIT:
        return tx.query_in(f"{query} AND host IN (%s)", sorted(hosts))
    wanted = frozenset(hosts)
    return [row for row in tx.query(query) if row[0] in wanted]
