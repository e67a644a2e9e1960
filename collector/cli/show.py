"""collector-cli show: all that is known of one host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click

from collector.cli import conflicts, options
from collector.cli.conflicts import Conflict, conflict_of
from collector.cli.diagnoses import diagnosis_json, find_current, source
from collector.cli.events import event_json, events_table
from collector.cli.find import find_host
from collector.cli.output import Cell, Line, Page, Table, line, state_cell
from collector.cli.session import Session
from collector.cli.ssh_places import Reached, reached, with_addresses
from collector.cli.times import local, utc
from collector.config import Ssh
from collector.core.render import duration, quantity
from collector.core.silence import Presence
from collector.core.standing import host_state, worst
from collector.core.status import CheckStatus, HostRecord
from collector.store.certificates import CertificateRow, load_certificates
from collector.store.collectors import Listening, load_listening
from collector.store.diagnoses import StoredDiagnosis
from collector.store.event_log import Filter, StoredEvent, load_events
from collector.store.hosts import find_hosts, load_facts
from collector.store.labels import load_labels
from collector.store.reading import HostLine
from collector.store.ssh_hosts import load_polled_numbers
from collector.store.statuses import LatestReport, load_latest, load_statuses
from collector.store.store import Transaction
from fleetpulse.model import CheckKey, Facts, Measurement, State

_BOOT_TIME = "system.boot_time"
_SHORT = 16  # hexadecimal digits of a certificate's fingerprint; --json has all


@dataclass(frozen=True)
class HostView:
    """One host."""

    listening: Listening
    host: HostLine
    record: HostRecord
    labels: Mapping[str, str]
    checks: Mapping[CheckKey, CheckStatus]
    latest: LatestReport | None
    facts: Facts
    events: list[StoredEvent]
    own_name: str
    certificates: list[CertificateRow]
    conflict: Conflict | None
    diagnosis: StoredDiagnosis | None
    source: str
    ssh: Reached | None

    @property
    def state(self) -> State:
        """A display judges nothing: the command's exit code is 0."""
        return State.OK

    @property
    def host_state(self) -> State:
        """How the host stands."""
        return host_state(self.presence, worst(check.state for check in self.checks.values()))

    @property
    def presence(self) -> Presence:
        """Whether the host is silent."""
        return self.host.presence(self.listening)

    @property
    def skew(self) -> int | None:
        """How far the host's clock was ahead of the collector's at the last report, in milliseconds.

        A report that waited in the spool makes it seem behind.
        """
        return self.host.measured_at - self.host.received_at if self.host.received_at else None

    def page(self, rows: int | None) -> Page:
        """Identity, checks, values, facts and events."""
        page: list[Line | Table] = [
            line(
                Cell(self.host.hostname, "strong"),
                "  ",
                state_cell(self.host_state),
                f"  {self.presence.value}, {self._heard()}",
            ),
            *(line(Cell(f"  {name:<14}", "dim"), value) for name, value in self._identity()),
        ]
        page += self._why()
        checks = Table(
            ("CHECK", "STATE", "FOR", "MESSAGE"), [self._check_row(*item) for item in self._worst_first()]
        )
        values = Table(("CHECK", "MEASUREMENT", "VALUE"), self._value_rows())
        if self.conflict:
            page += conflicts.section([self.conflict], self.listening.now)
        facts = Table(
            ("FACT", "VALUE"), [(Cell(name, "dim"), Cell(self.facts[name])) for name in sorted(self.facts)]
        )
        events = events_table(self.events, with_host=False)
        for table in (checks, values, facts, events):
            if table.rows:
                page += [line(), table._replace(rows=table.rows[:rows])]
        return page

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        host = self.host
        return {
            "hostname": host.hostname,
            "host_id": host.host_id,
            "state": self.host_state.name,
            "presence": self.presence.value,
            "now": utc(self.listening.now),
            "last_report_at": utc(host.received_at),
            "report_age_seconds": (self.listening.now - host.received_at) / 1000
            if host.received_at
            else None,
            "measured_at": utc(host.measured_at),
            "clock_skew_seconds": self.skew / 1000 if self.skew is not None else None,
            "address": host.address,
            "agent_version": host.agent_version,
            "source": self.source,
            "interval_seconds": host.interval / 1000,
            "ttl_seconds": host.ttl / 1000,
            "groups": self.record.groups,
            "labels": self.labels,
            "own_name": self.own_name or host.hostname,
            "hardware_id": self.record.hardware_id,
            "machine_id": self.record.machine_id,
            "boot_id": self.record.boot_id,
            "added_at": utc(host.added_at),
            "certificates": [self._certificate_json(row) for row in self.certificates],
            "ssh": self.ssh.as_json() if self.ssh else None,
            "conflict": self.conflict.as_json() if self.conflict else None,
            "diagnosis": diagnosis_json(self.diagnosis),
            "checks": [
                {
                    "check": key.name,
                    "instance": key.instance,
                    "state": check.state.name,
                    "since": utc(check.since),
                    "message": check.message,
                }
                for key, check in self._worst_first()
            ],
            "values": [
                {
                    "check": key.name,
                    "instance": key.instance,
                    "measurement": measurement.name,
                    "unit": measurement.unit,
                    "value": value,
                }
                for key, measurement, value in self._values()
            ],
            "facts": dict(sorted(self.facts.items())),
            "events": [event_json(event) for event in self.events],
        }

    def _heard(self) -> str:
        if not self.host.received_at:
            return "no report yet"
        return f"heard {duration(self.listening.now - self.host.received_at)} ago"

    def _why(self) -> list[Line | Table]:
        """What was found out about the silence."""
        found, now = self.diagnosis, self.listening.now
        if found is None:
            return []
        evidence = found.evidence.split("\n") if found.evidence else []
        since = f"since {local(found.since)} ({duration(now - found.since)})"
        page: list[Line | Table] = [
            line(),
            line(
                Cell(found.kind.value, "critical"), f"  {since}, probed {duration(now - found.probed_at)} ago"
            ),
            *(line(f"  {text}") for text in evidence),
        ]
        if found.health_at:
            age = duration(now - found.health_at)
            page.append(line(Cell(f"  checks and values are from SSH, {age} old", "warning")))
        return page

    def _identity(self) -> list[tuple[str, str]]:
        host = self.host
        is_polled = self.ssh is not None and self.ssh.is_polled
        rows = [
            ("host id", host.host_id),
            ("calls itself", self.own_name),
            ("address", host.address),
            ("agent", "none: polled over SSH" if is_polled else host.agent_version),
            ("reports", f"every {duration(host.interval)}, stale after {duration(host.ttl)}"),
            *(self.ssh.rows() if self.ssh else ()),
            ("groups", ", ".join(self.record.groups)),
            ("labels", ", ".join(f"{name}={content}" for name, content in self.labels.items())),
            ("hardware id", self.record.hardware_id),
            ("machine id", self.record.machine_id),
            ("boot id", self.record.boot_id),
            *(part for row in self.certificates for part in self._certificate(row)),
            ("certificate", "" if self.certificates or is_polled else "none: not enrolled, or without TLS"),
            ("known since", local(host.added_at)),
        ]
        if host.received_at:
            rows.append(("last report", local(host.received_at)))
        if self.skew is not None:
            rows.append(("clock", f"{self.skew / 1000:+.3f} s against the collector's"))
        return [(name, value) for name, value in rows if value]

    def _certificate(self, row: CertificateRow) -> tuple[tuple[str, str], tuple[str, str]]:
        now = self.listening.now
        if row.revoked_at is not None:
            end = f"REVOKED {local(row.revoked_at)}"
        elif row.is_valid(now):
            end = f"expires {local(row.not_after)} (in {duration(row.not_after - now)})"
        else:
            end = f"EXPIRED {local(row.not_after)}"
        fingerprint, issuer = row.fingerprint.hex()[:_SHORT], row.issuer.hex()[:_SHORT]
        return ("certificate", f"{fingerprint} of CA {issuer}"), ("", f"issued {local(row.issued_at)}, {end}")

    def _certificate_json(self, row: CertificateRow) -> dict[str, object]:
        return {
            "fingerprint": row.fingerprint.hex(),
            "issuer": row.issuer.hex(),
            "issued_at": utc(row.issued_at),
            "expires_at": utc(row.not_after),
            "revoked_at": utc(row.revoked_at or 0),
            "valid": row.is_valid(self.listening.now),
        }

    def _worst_first(self) -> list[tuple[CheckKey, CheckStatus]]:
        return sorted(self.checks.items(), key=lambda item: (-item[1].state.severity, item[0]))

    def _check_row(self, key: CheckKey, check: CheckStatus) -> tuple[Cell, ...]:
        return (
            Cell(str(key)),
            state_cell(check.state),
            Cell(duration(self.listening.now - check.since)),
            Cell(check.message or "-"),
        )

    def _values(self) -> list[tuple[CheckKey, Measurement, float]]:
        if self.latest is None:
            return []
        series = self.latest.layout.series
        return [(*named, value) for named, value in zip(series, self.latest.values, strict=True)]

    def _value_rows(self) -> list[tuple[Cell, ...]]:
        return [
            (Cell(str(key)), Cell(measurement.name, "dim"), Cell(readable(measurement, value)))
            for key, measurement, value in self._values()
        ]


def readable(measurement: Measurement, value: float) -> str:
    """A value as people read it; the time of boot as a time."""
    if measurement.name == _BOOT_TIME and abs(value) < 1e11:
        return local(int(value * 1000))
    return quantity(value, measurement.unit)


def view_host(tx: Transaction, name: str, events: int, site: Ssh) -> HostView:
    """The host that `name` means, with its last events. Raises CliError."""
    listening = load_listening(tx)
    [host] = with_addresses(tx, [find_host(tx, name)], site)
    number = host.host
    statuses = load_statuses(tx, [number])
    stored = find_hosts(tx, [host.host_id])[host.host_id]
    diagnosis = find_current(tx, [host]).get(number)
    return HostView(
        listening,
        host,
        stored.record,
        load_labels(tx, [number]).get(number, {}),
        statuses[number].status.checks if number in statuses else {},
        load_latest(tx, [number]).get(number),
        load_facts(tx, number),
        load_events(tx, Filter(host=number), events) if events else [],
        stored.own_name,
        load_certificates(tx, [number]).get(number, []),
        conflict_of(tx, number),
        diagnosis,
        source(diagnosis, polled=number in load_polled_numbers(tx, [number])),
        reached(tx, host, site),
    )


@click.command("show")
@click.argument("name", metavar="HOST")
@click.option(
    "--events", type=click.IntRange(0), default=10, show_default=True, help="How many of the last events."
)
@options.json_option
@click.pass_obj
def command(session: Session, name: str, events: int, *, as_json: bool) -> int:
    """Show all that is known of one host: identity, certificate, checks, latest values, facts, last events.

    Of a silent one also why it is silent, as far as a probe over SSH has found that out.

    HOST is a hostname, a UUID, or the start of either if no other host's starts the same.

    \b
    Examples:
      collector-cli show web-17
      collector-cli show 6ba7b810
      collector-cli show web-17 --json | jq '.values[] | select(.check == "filesystem")'

    Exit codes: 0, however the host is; 3 if there is no such host or more than one, for a wrong
    command line, and without a database.
    """
    with session.store() as store, store.transaction(write=False) as tx:
        view = view_host(tx, name, events, session.loaded.config.ssh)
    return session.answer(view, as_json=as_json)
