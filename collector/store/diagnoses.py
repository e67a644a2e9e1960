"""Why hosts are silent, as it was found out last."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from collector.core.diagnosis import Diagnosis, DiagnosisKind, Neighbour, network_of
from collector.core.status import Event, EventKind
from collector.store.hosts import load_heard
from collector.store.reading import of_hosts
from collector.store.ssh_hosts import load_given_addresses
from collector.store.statuses import write_events
from collector.store.store import Row, Transaction

_PATTERNS = 50  # networks in one statement
_COLUMNS = "host, kind, evidence, heard_at, since, probed_at, health_at"


class StoredDiagnosis(NamedTuple):
    """One host's. Times in milliseconds.

    `heard_at` is when the host had been heard last: a diagnosis is of that silence alone. `since` is when it
    was found first, `probed_at` last; `health_at` is when its checks were last judged by what SSH said (0: never).
    """

    host: int
    kind: DiagnosisKind
    evidence: str
    heard_at: int
    since: int
    probed_at: int
    health_at: int

    @property
    def diagnosis(self) -> Diagnosis:
        """What is the case."""
        return Diagnosis(self.kind, self.evidence)


class Finding(NamedTuple):
    """What a probe found out about a host, which had been heard last at `heard_at`.

    `has_health`: its checks were judged by what SSH said. `is_polled`: it has no agent, and a check of its own
    says that it could not be asked.
    """

    host: int
    name: str
    heard_at: int
    diagnosis: Diagnosis
    has_health: bool = False
    is_polled: bool = False


def save_findings(tx: Transaction, findings: Iterable[Finding], now: int) -> None:
    """Write what was found out; a diagnosis of another kind than before is an event."""
    by_host = {finding.host: finding for finding in findings}
    before = load_diagnoses(tx, by_host)
    heard = load_heard(tx, sorted(by_host))
    rows: list[Row] = []
    events: list[tuple[int | None, str, Event]] = []
    for host, finding in sorted(by_host.items()):
        if heard.get(host) != finding.heard_at:  # it was removed, or has spoken since it was asked
            continue
        kind, evidence = finding.diagnosis
        known = before.get(host)
        is_same = known is not None and known.heard_at == finding.heard_at and known.kind is kind
        since = known.since if known is not None and is_same else now
        health_at = now if finding.has_health else known.health_at if known is not None else 0
        rows.append((host, kind.value, evidence, finding.heard_at, since, now, health_at))
        is_changed_key = kind is DiagnosisKind.HOST_KEY_CHANGED
        old = known.kind.value if known is not None and known.heard_at == finding.heard_at else ""
        # That nobody may ask is no news of the host, nor is what the check of a polled one says already.
        is_quiet = finding.is_polled or (kind is DiagnosisKind.NOT_PROBED and not old)
        if not is_same and (is_changed_key or not is_quiet):
            event = Event(
                now,
                EventKind.HOST_KEY_CHANGED if is_changed_key else EventKind.DIAGNOSED,
                old=old,
                new=kind.value,
                message=evidence,
            )
            events.append((host, finding.name, event))
    tx.execute_many(tx.dialect.upsert("diagnosis", ("host",), tuple(_COLUMNS.split(", ")[1:])), rows)
    write_events(tx, events)


def forget_diagnoses(tx: Transaction, hosts: Iterable[int]) -> None:
    """These hosts are heard again."""
    tx.execute_many("DELETE FROM diagnosis WHERE host = %s", [(host,) for host in sorted(hosts)])


def load_outdated(tx: Transaction) -> list[int]:
    """The hosts that have been heard since they were diagnosed."""
    rows = tx.query(
        "SELECT d.host FROM diagnosis d JOIN host_seen s ON s.host = d.host WHERE s.received_at <> d.heard_at"
    )
    return [host for (host,) in rows]


def load_diagnoses(tx: Transaction, hosts: Collection[int]) -> dict[int, StoredDiagnosis]:
    """Those of the hosts that have one, whichever silence it is about."""
    rows = of_hosts(tx, f"SELECT {_COLUMNS} FROM diagnosis WHERE 1 = 1", hosts)  # noqa: S608 - names of ours
    return {row[0]: _stored(row) for row in rows}


def load_neighbours(tx: Transaction, addresses: Iterable[str]) -> list[Neighbour]:
    """The hosts that may be of the same networks as these, at the least, and when they were heard.

    Each by its own address, or the one that was given for SSH.
    """
    patterns = sorted({pattern for address in addresses if (pattern := _neighbourhood(address))})
    given = load_given_addresses(tx)
    columns = "SELECT h.id, h.address, h.interval_ms, s.received_at, COALESCE(d.health_at, 0) FROM host h "
    joins = "JOIN host_seen s ON s.host = h.id LEFT JOIN diagnosis d ON d.host = h.id "
    rows: dict[int, Row] = {
        row[0]: row for row in tx.query_in(f"{columns}{joins}WHERE h.id IN (%s)", sorted(given))
    }
    for start in range(0, len(patterns), _PATTERNS):
        part = patterns[start : start + _PATTERNS]
        likes = " OR ".join(["h.address LIKE %s"] * len(part))
        rows |= {row[0]: row for row in tx.query(f"{columns}{joins}WHERE {likes}", part)}
    return [Neighbour(given.get(host, str(address)), *rest) for host, address, *rest in rows.values()]


def _neighbourhood(address: str) -> str:
    """What the addresses of a network look like at the least; empty for what is no address."""
    if ":" in address:
        return "%:%"  # the same network can be written in many ways
    network = network_of(address)
    return f"{network.rpartition('.')[0]}.%" if network else ""


def current(diagnoses: Mapping[int, StoredDiagnosis], host: int, received_at: int) -> StoredDiagnosis | None:
    """The diagnosis of the silence since `received_at`, if there is one."""
    found = diagnoses.get(host)
    return found if found is not None and found.heard_at == received_at else None


def _stored(row: Row) -> StoredDiagnosis:
    host, kind, *rest = row
    try:
        known = DiagnosisKind(kind)
    except ValueError:  # of a newer version
        known = DiagnosisKind.NOT_PROBED
    return StoredDiagnosis(host, known, *rest)
