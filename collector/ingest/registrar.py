"""Hellos of one transaction: who may speak for a host, and what is stored of it from now on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from collector.core import diff
from collector.core.identity import (
    Incumbent,
    Judgement,
    Verdict,
    judge,
    place_hash,
    place_of,
    released_after,
    same_place,
)
from collector.core.render import duration
from collector.core.ssh_settings import POLLED
from collector.core.status import Event, EventKind
from collector.ingest.items import ENROL_AGAIN, Held, HelloRefused, Registration
from collector.store import certificates, hosts
from collector.store.certificates import CertificateRow
from collector.store.collectors import load_listening_since, load_live
from collector.store.conflicts import ConflictRow, load_conflicts, save_conflict
from collector.store.errors import StoreConflict
from collector.store.hosts import StoredHost
from collector.store.store import Transaction

_MOST_CONFLICTS = 50  # machines that are remembered for one host; a thousand clones need no thousand rows

_Events = list[tuple[int | None, str, Event]]


class Admission(NamedTuple):
    """A Hello that counts: the host's number, its record's name, and the certificate that proved it."""

    host: int
    name: str
    certificate: CertificateRow | None


class Registrar:
    """Takes the Hellos of one transaction, in which it alone changes the hosts' rows.

    `now` is the collector's time. Certificates follow the system's clock, as in the handshake. Both in milliseconds.
    """

    def __init__(
        self, tx: Transaction, now: int, system_now: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ):
        self._tx = tx
        self._now = now
        self._system_now = system_now
        self._known: dict[str, StoredHost] = {}
        self._certificates: dict[int, dict[bytes, CertificateRow]] = {}
        self._heard: dict[int, int] = {}
        self._conflicts: dict[int, dict[bytes, ConflictRow]] = {}
        self._live: set[str] | None = None
        self._listening: int | None = None
        self._opened: dict[int, int] = {}  # hosts whose Hello counts since this transaction, and when it came
        self._events: _Events = []

    def register(
        self, items: Sequence[Registration]
    ) -> tuple[dict[Registration, Admission | Held | HelloRefused], _Events]:
        """What becomes of each Hello, and the events to write. Several of one host count in their order.

        Raises StoreConflict where another collector writes the same hosts.
        """
        self._known = hosts.find_hosts(self._tx, list({item.record.host_id for item in items}))
        self._load_certificates(items)
        answers: dict[Registration, Admission | Held | HelloRefused] = {}
        good: list[tuple[Registration, CertificateRow | None]] = []
        for item in items:
            certificate = self._certificate(item)
            if item.is_polled and item.record.host_id not in self._known:
                answers[item] = HelloRefused("polled", "the host was removed", item.record.hostname)
            elif isinstance(certificate, HelloRefused):
                answers[item] = certificate
            else:
                good.append((item, certificate))
        self._add_new([item for item, _ in good])
        self._load_rivals([item for item, _ in good])
        # In the same order as everybody else, so that nobody waits for whom he blocks.
        for item, certificate in sorted(good, key=lambda pair: pair[0].record.host_id):
            answers[item] = self._decide(item, certificate)
        return answers, self._events

    def _load_certificates(self, items: Sequence[Registration]) -> None:
        numbers = {
            self._known[item.record.host_id].host
            for item in items
            if item.fingerprint is not None and item.record.host_id in self._known
        }
        if numbers:
            found = certificates.load_certificates(self._tx, sorted(numbers))
            self._certificates = {
                host: {row.fingerprint: row for row in rows} for host, rows in found.items()
            }

    def _certificate(self, item: Registration) -> CertificateRow | HelloRefused | None:
        """The certificate with which a Hello came; None without TLS."""
        if item.fingerprint is None:
            return None
        known = self._known.get(item.record.host_id)
        row = self._certificates.get(known.host, {}).get(item.fingerprint) if known else None
        name = known.name if known else item.record.hostname
        if row is None:
            text = "this certificate is not known here: its host was removed, or has a newer one"
            return HelloRefused("unknown_certificate", f"{text}; {ENROL_AGAIN}", name)
        if row.revoked_at is not None:
            return HelloRefused("revoked", f"this host's certificate was revoked; {ENROL_AGAIN}", name)
        if not row.is_valid(self._system_now()):  # its connection is older than that
            return HelloRefused("expired", f"this host's certificate has expired; {ENROL_AGAIN}", name)
        return row

    def _add_new(self, items: Sequence[Registration]) -> None:
        new: dict[str, Registration] = {}
        for item in items:
            if item.record.host_id not in self._known:
                new.setdefault(item.record.host_id, item)
        if not new:
            return
        if hosts.add_hosts(self._tx, [item.record for item in new.values()], self._now) != len(new):
            raise StoreConflict("another collector added some of the same hosts")
        added = hosts.find_hosts(self._tx, list(new))
        if len(added) != len(new):
            raise StoreConflict("a host was removed while it was added")
        self._known |= added
        for host_id, item in new.items():
            self._note(added[host_id], diff.compare_records(None, item.record, item.received_at))

    def _load_rivals(self, items: Sequence[Registration]) -> None:
        """What it takes to judge those who come from another place than the one that is stored."""
        numbers = set()
        seen: set[str] = set()
        for item in items:
            known = self._known[item.record.host_id]
            if known.record.host_id in seen or not same_place(place_of(item.record), place_of(known.record)):
                numbers.add(known.host)
            seen.add(known.record.host_id)
        if numbers:
            self._heard = hosts.load_heard(self._tx, sorted(numbers))
            self._conflicts = {
                host: {row.place: row for row in rows}
                for host, rows in load_conflicts(self._tx, sorted(numbers)).items()
            }

    def _decide(
        self, item: Registration, certificate: CertificateRow | None
    ) -> Admission | Held | HelloRefused:
        known = self._known[item.record.host_id]
        if item.is_polled and known.record.agent_version not in ("", POLLED):
            return HelloRefused("polled", "the host has an agent now, which speaks for it", known.name)
        judgement = self._judge(item, known)
        if judgement.contest is not None:
            return Held(judgement.wait, judgement.contest)
        if judgement.verdict is not Verdict.ADMIT:
            return self._refuse(item, known)
        stored = hosts.update_host(self._tx, known, item.record)
        if stored is not known:
            self._known[item.record.host_id] = stored
            self._note(stored, diff.compare_records(known.record, item.record, item.received_at))
        self._opened[stored.host] = item.received_at
        if certificate is not None:
            self._supersede(certificate)
        return Admission(stored.host, stored.name, certificate)

    def _note(self, stored: StoredHost, events: Sequence[Event]) -> None:
        self._events.extend([(stored.host, stored.name, event) for event in events])

    def _judge(self, item: Registration, known: StoredHost) -> Judgement:
        if item.is_polled or known.record.agent_version == POLLED:
            return Judgement(Verdict.ADMIT)  # the collector went there itself, or an agent takes over
        place, incumbent = place_of(item.record), self._incumbent(item, known)
        conflict = self._conflicts.get(known.host, {}).get(place_hash(place, incumbent.place))
        return judge(place, incumbent, self._now, item.contest, conflict and conflict.last_at)

    def _incumbent(self, item: Registration, known: StoredHost) -> Incumbent:
        record = known.record
        is_here = record.collector in ("", item.record.collector)
        opened = self._opened.get(known.host, 0)
        open_since = max(item.open_since, opened) if is_here else 0
        heard_at = max(self._heard.get(known.host, 0), open_since)
        place = place_of(record)
        if same_place(place_of(item.record), place):
            return Incumbent(place, record.interval, record.ttl, heard_at, open_since=open_since)
        is_elsewhere = not is_here and record.collector in self._live_collectors()
        return Incumbent(
            place, record.interval, record.ttl, heard_at, self._listening_since(), open_since, is_elsewhere
        )

    def _live_collectors(self) -> set[str]:
        if self._live is None:
            self._live = {row.name for row in load_live(self._tx)}
        return self._live

    def _listening_since(self) -> int:
        if self._listening is None:
            self._listening = load_listening_since(self._tx, self._now) or self._now
        return self._listening

    def _refuse(self, item: Registration, known: StoredHost) -> HelloRefused:
        said, place, incumbent = item.record, place_of(item.record), place_of(known.record)
        of_host = self._conflicts.setdefault(known.host, {})
        key = place_hash(place, incumbent)
        if key in of_host or len(of_host) < _MOST_CONFLICTS:
            first_at = of_host[key].first_at if key in of_host else self._now
            row = ConflictRow(
                known.host,
                key,
                said.hostname,
                said.address,
                said.machine_id,
                said.hardware_id,
                said.boot_id,
                said.instance,
                first_at,
                self._now,
            )
            save_conflict(self._tx, row)
            if key not in of_host:
                message = f"{said.hostname} says that it is this host, which lives elsewhere; it is refused"
                event = Event(
                    self._now, EventKind.CONFLICT, old=str(incumbent), new=str(place), message=message
                )
                self._note(known, [event])
            of_host[key] = row
        own = "fleet-agent enroll --new-identity" if item.fingerprint else "remove host_id from its state_dir"
        text = (
            f"another machine has this identity: {incumbent}; give this one its own: {own}; or switch the other off: "
            f"{duration(released_after(known.record.ttl))} after it was heard last, this one is let in"
        )
        if item.fingerprint:
            text += f", and sooner if you {ENROL_AGAIN}"
        return HelloRefused("conflict", text, known.name)

    def _supersede(self, used: CertificateRow) -> None:
        of_host = self._certificates[used.host]
        if any(row.issued_at < used.issued_at and row.revoked_at is None for row in of_host.values()):
            certificates.supersede(self._tx, used)
