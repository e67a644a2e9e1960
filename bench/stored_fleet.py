"""A large fleet in a database, as the collector would have left it: for benchmarks of those who read.

Every host has the 12 checks and 48 values of `bench.load`, a certificate, one or two groups and labels. Which
of them are silent or not well follows from their numbers alone, so that all databases hold the same.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence

from bench.stream import LAYOUT
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.status import CheckStatus, Silence
from collector.store.collectors import CollectorRow, heartbeat
from collector.store.diagnoses import Finding, save_findings
from collector.store.statuses import latest_row, layout_number, write_checks
from collector.store.store import Row, Store, Transaction
from fleetpulse.model import CheckKey, State

_PART = 10_000  # hosts in one transaction
_HOUR = 3_600_000
_DAY = 24 * _HOUR
_VALUES = tuple(0.25 for _ in range(LAYOUT.series_count))
_RACKS = 400


def keep_listening(store: Store, now: int) -> None:
    """A heartbeat of a collector that has been listening for an hour; wanted every few seconds."""
    with store.transaction() as tx:
        heartbeat(tx, CollectorRow("bench", "127.0.0.1:18443", "bench", 8, now - _HOUR, now, None))


def fill(store: Store, hosts: int) -> None:
    """Make so many hosts in a database that has none."""
    now = int(time.time() * 1000)
    keep_listening(store, now)
    with store.transaction() as tx:
        layout = layout_number(tx, LAYOUT)
    for start in range(1, hosts + 1, _PART):
        numbers = range(start, min(start + _PART, hosts + 1))
        with store.transaction() as tx:
            _add_hosts(tx, numbers, now)
            tx.dialect.update_latest(tx.cursor, [latest_row(n, layout, _VALUES, ()) for n in numbers])
            _add_checks(tx, numbers, now)
            _add_groups_and_labels(tx, numbers)
        with store.transaction() as tx:
            _diagnose(tx, numbers, now)
    with store.transaction() as tx:
        _refresh_statistics(tx)


def _heard_at(number: int, now: int) -> int:
    if number % 1000 == 7:
        return 0
    if number % 1000 == 8:
        return now - 3 * _HOUR
    if number % 100 == 0:
        return now - 2 * _DAY + number
    return now - number % 15_000


def _ttl(number: int) -> int:
    """A day, so that nobody goes silent while it is measured; two hours for who was last heard before the
    collector began to listen."""
    return 2 * _HOUR if number % 1000 == 8 else _DAY


def _add_hosts(tx: Transaction, numbers: range, now: int) -> None:
    names = (
        "id, host_id, hostname, machine_id, boot_id, agent_version, address, interval_ms, ttl_ms, added_at, "
        "hardware_id, instance, collector"
    )
    _insert(tx, "host", names, (_host(number, now) for number in numbers))
    seen = (
        (
            number,
            1,
            1,
            1,
            _heard_at(number, now),
            _heard_at(number, now),
            Silence.ALONE.value if number % 100 == 0 else Silence.NONE.value,
        )
        for number in numbers
    )
    _insert(tx, "host_seen", "host, version, epoch, seq, received_at, measured_at, silence", seen)
    certificates = (
        (hashlib.sha256(b"%d" % number).digest(), number, b"i" * 32, now - _DAY, now + 90 * _DAY)
        for number in numbers
    )
    _insert(tx, "certificate", "fingerprint, host, issuer, issued_at, not_after", certificates)


def _host(number: int, now: int) -> Row:
    mixed = number * 7919 % 1_000_003  # names are in another order than numbers
    return (
        number,
        str(uuid.uuid5(uuid.NAMESPACE_DNS, f"stored-{number}")),
        f"node-{mixed:07}.lab.example",
        f"{number:032x}",
        f"{number:032x}",
        "0.2.0",
        f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        15_000,
        _ttl(number),
        now - 30 * _DAY,
        f"{number:064x}",
        "",
        "bench",
    )


def _add_checks(tx: Transaction, numbers: range, now: int) -> None:
    """All OK, which the server does by itself; then those that are not."""
    checks = " UNION ALL ".join(["SELECT %s AS name, %s AS instance"] * len(LAYOUT.checks))
    tx.execute(
        "INSERT INTO check_state (host, name, instance, state, since, message) "
        f"SELECT h.id, c.name, c.instance, 0, %s, '' FROM host h CROSS JOIN ({checks}) c "
        "WHERE h.id BETWEEN %s AND %s ORDER BY h.id, c.instance",
        (now - _HOUR, *(part for check in LAYOUT.checks for part in check.key), numbers[0], numbers[-1]),
    )
    failing: dict[int, dict[CheckKey, CheckStatus | None]] = {}
    for number in numbers:
        for index, check in enumerate(LAYOUT.checks):
            state = _state(12 * number + index)
            if state is not State.OK:
                text = "system.filesystem.utilization is 91 %"
                failing.setdefault(number, {})[check.key] = CheckStatus(state, now - _HOUR, text)
    write_checks(tx, failing)


def _state(check: int) -> State:
    """Of each check of the fleet: 3 in a thousand warn, 1 in a thousand is critical, 1 in 10,000 unknown."""
    every = {331: State.WARNING, 997: State.CRITICAL, 9973: State.UNKNOWN}
    return next((state for step, state in every.items() if check % step == 0), State.OK)


def _add_groups_and_labels(tx: Transaction, numbers: range) -> None:
    groups = [(number, f"rack-{number % _RACKS:03}") for number in numbers]
    groups += [(number, "gpu") for number in numbers if number % 10 == 3]
    _insert(tx, "host_group", "host, name", groups)
    labels = [(number, "site", ("berlin", "oslo", "turin")[number % 3]) for number in numbers]
    labels += [(number, "canary", "") for number in numbers if number % 50 == 1]
    _insert(tx, "host_label", "host, name, content", labels)


def _diagnose(tx: Transaction, numbers: range, now: int) -> None:
    dead = Diagnosis(DiagnosisKind.HOST_DEAD, "no answer on port 22 within 5 s, its neighbours answer")
    silent = [n for n in numbers if n % 100 == 0]
    save_findings(tx, [Finding(n, f"node-{n}", _heard_at(n, now), dead) for n in silent], now)


def _insert(tx: Transaction, table: str, names: str, rows: Iterator[Row] | Sequence[Row]) -> None:
    placeholders = ", ".join(["%s"] * len(names.split(", ")))
    tx.execute_many(f"INSERT INTO {table} ({names}) VALUES ({placeholders})", list(rows))


def _refresh_statistics(tx: Transaction) -> None:
    """What a server does by itself after a while."""
    if tx.dialect.name == "mysql":
        tables = "host, host_seen, host_latest, check_state, host_group, host_label, diagnosis, certificate"
        tx.query(f"ANALYZE TABLE {tables}")
    else:
        tx.execute("ANALYZE")
