"""collector-cli status: the fleet at a glance, the worst hosts first."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import click

from collector.cli import conflicts, options
from collector.cli.conflicts import Conflict, find_conflicts
from collector.cli.diagnoses import find_current, without_unasked
from collector.cli.output import Cell, Line, Page, Table, line, state_cell, summary
from collector.cli.session import Session, select
from collector.cli.stale import nobody_listens
from collector.cli.times import local, utc
from collector.config import Ssh
from collector.core.render import count, duration
from collector.core.silence import HEARTBEAT_GRACE, Presence, presence
from collector.core.standing import host_state, worst
from collector.store import reading
from collector.store.collectors import CollectorRow, Listening, load_collectors, load_listening
from collector.store.diagnoses import StoredDiagnosis
from collector.store.reading import CheckCounts, CheckLine, HostLine
from collector.store.selection import Selection
from collector.store.silence import load_fleet_silence
from collector.store.store import Transaction
from fleetpulse.model import CheckKey, State

_WORST_FIRST = sorted(State, key=lambda state: -state.severity)
_CHECKS_SHOWN = 3
_HOSTS_NAMED = 5  # in the summary
_OF_SSH = CheckKey("ssh")
_CALM = CheckCounts(State.OK, 0)


class ReportAges(NamedTuple):
    """How long ago the hosts that are fresh were heard, in milliseconds."""

    newest: int
    median: int
    oldest: int


class BadHost(NamedTuple):
    """A host that is not OK. `told` is what the table says of its diagnosis, None for nothing."""

    host: HostLine
    state: State
    presence: Presence
    checks: tuple[CheckLine, ...]
    diagnosis: StoredDiagnosis | None
    told: StoredDiagnosis | None

    @property
    def since(self) -> int:
        """When it became what it is: its silence, or the oldest of its worst checks."""
        if self.presence is not Presence.FRESH:
            return self.host.silent_since
        return min(check.since for check in self.checks if check.state is self.state)


@dataclass(frozen=True)
class Fleet:
    """How the fleet is."""

    listening: Listening
    presences: Counter[Presence]
    states: Counter[State]
    ages: ReportAges | None
    collectors: tuple[CollectorRow, ...]
    silent_as_a_whole_since: int
    bad: tuple[BadHost, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def total(self) -> int:
        """How many hosts there are."""
        return self.states.total()

    @property
    def state(self) -> State:
        """The worst state of any host; at least WARNING in a conflict, UNKNOWN while nobody listens."""
        in_conflict = State.WARNING if self.conflicts else State.OK
        unheard = State.OK if self.listening.since is not None else State.UNKNOWN
        return worst((*self.states, in_conflict, unheard))

    @property
    def summary(self) -> str:
        """What is the case, in one line."""
        parts = [f"{self.states[state]} {state.name.lower()}" for state in _WORST_FIRST if self.states[state]]
        text = f"{count(self.total, 'host')}: {', '.join(parts)}" if parts else "no hosts yet"
        named = [bad.host.hostname for bad in self.bad if bad.state is self.state][:_HOSTS_NAMED]
        if named:
            more = self.states[self.state] - len(named)
            text += f" ({', '.join(named)}{f' and {more} more' if more else ''})"
        if self.conflicts:
            text += f"; {conflicts.names(self.conflicts)}"
        return text if self.listening.since is not None else f"no collector is listening; {text}"

    def page(self, rows: int | None) -> Page:
        """A summary, the counts, and a table of the worst hosts."""
        below, rows = conflicts.beside(self.conflicts, self.listening.now, rows)
        page: list[Line | Table] = [summary(self.state, self.summary)]
        if self.listening.since is None:
            page.append(nobody_listens())
        page.append(
            line(
                Cell("presence   ", "dim"),
                ", ".join(f"{self.presences[kind]} {kind.value}" for kind in Presence),
            )
        )
        if self.ages:
            newest, median, oldest = map(duration, self.ages)
            page.append(
                line(Cell("reports    ", "dim"), f"newest {newest}, median {median}, oldest {oldest} ago")
            )
        page += [self._collector_line(row) for row in self.collectors]
        if self.silent_as_a_whole_since:
            since = self.silent_as_a_whole_since
            page.append(
                line(
                    Cell("fleet      ", "dim"),
                    Cell("silent as a whole", "critical"),
                    f" since {local(since)} ({duration(self.listening.now - since)})",
                )
            )
        if self.bad:
            table = Table(
                ("HOST", "STATE", "FOR", "WHY"),
                [self._row(bad) for bad in self.bad[:rows]],
            )
            page += [line(), table]
            hidden = self.total - self.states[State.OK] - len(table.rows)
            if hidden > 0:
                page.append(line(Cell(f"and {count(hidden, 'more host')} not OK", "dim")))
        return page + below

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        now = self.listening.now
        return {
            "state": self.state.name,
            "summary": self.summary,
            "now": utc(now),
            "listening_since": utc(self.listening.since or 0),
            "hosts_total": self.total,
            "presence": {kind.value: self.presences[kind] for kind in Presence},
            "states": {state.name: self.states[state] for state in State},
            "report_age_seconds": {
                name: value / 1000 for name, value in zip(ReportAges._fields, self.ages, strict=True)
            }
            if self.ages
            else None,
            "fleet_silent_since": utc(self.silent_as_a_whole_since),
            "collectors": [
                {
                    "name": row.name,
                    "address": row.address,
                    "version": row.version,
                    "pool_size": row.pool_size,
                    "listening": is_alive(row, now),
                    "listening_since": utc(row.listening_since),
                    "heartbeat_at": utc(row.heartbeat_at),
                    "heartbeat_age_seconds": (now - row.heartbeat_at) / 1000,
                    "stopped_at": utc(row.stopped_at or 0),
                }
                for row in self.collectors
            ],
            "hosts": [
                {
                    "hostname": bad.host.hostname,
                    "host_id": bad.host.host_id,
                    "state": bad.state.name,
                    "presence": bad.presence.value,
                    "since": utc(bad.since),
                    "seconds": (now - bad.since) / 1000,
                    "diagnosis": bad.diagnosis.kind.value if bad.diagnosis else None,
                    "checks": [check_json(check) for check in bad.checks],
                }
                for bad in self.bad
            ],
            "conflicts": [conflict.as_json() for conflict in self.conflicts],
        }

    def _collector_line(self, row: CollectorRow) -> Line:
        now = self.listening.now
        if row.stopped_at:
            what = Cell(f"stopped {duration(now - row.stopped_at)} ago", "warning")
        elif is_alive(row, now):
            what = Cell(f"listening for {duration(now - row.listening_since)}", "ok")
        else:
            what = Cell(f"not heard for {duration(now - row.heartbeat_at)}", "critical")
        return line(
            Cell("collector  ", "dim"), f"{row.name} ", what, f", pool {row.pool_size}, version {row.version}"
        )

    def _row(self, bad: BadHost) -> tuple[Cell, ...]:
        return (
            Cell(bad.host.hostname, "strong"),
            state_cell(bad.state),
            Cell(duration(self.listening.now - bad.since)),
            Cell(_reasons(bad)),
        )


def is_alive(row: CollectorRow, now: int) -> bool:
    """Whether a collector's heartbeat is recent."""
    return not row.stopped_at and now - row.heartbeat_at <= HEARTBEAT_GRACE


def check_json(check: CheckLine) -> dict[str, object]:
    """A check that is not OK, as docs/cli.md describes it."""
    return {
        "check": check.key.name,
        "instance": check.key.instance,
        "state": check.state.name,
        "since": utc(check.since),
        "message": check.message,
    }


def _reasons(bad: BadHost) -> str:
    reasons = []
    if bad.presence is not Presence.FRESH:
        why = f": {bad.told.kind.value}" if bad.told else ""
        reasons.append(bad.presence.value.replace("_", " ") + why)
    # Of a polled host, its check says what the diagnosis does.
    checks = [check for check in bad.checks if bad.told is None or check.key != _OF_SSH]
    for check in checks[:_CHECKS_SHOWN]:
        mark = "" if check.state is bad.state else f" {check.state.name}"
        reasons.append(f"{check.key}{mark}: {check.message}" if check.message else f"{check.key}{mark}")
    if len(checks) > _CHECKS_SHOWN:
        reasons.append(f"and {len(checks) - _CHECKS_SHOWN} more")
    return "; ".join(reasons)


def look_at_fleet(tx: Transaction, wanted: Selection, limit: int, site: Ssh) -> Fleet:
    """How the fleet is, or those hosts of it, with the `limit` worst ones."""
    listening = load_listening(tx)
    seen = reading.load_last_seen(tx, wanted)
    checks = reading.load_check_counts(tx, [host.host for host in seen])
    presences: Counter[Presence] = Counter()
    states: Counter[State] = Counter()
    ages: list[int] = []
    ranked: list[tuple[int, int, int]] = []
    standing: dict[int, tuple[State, Presence]] = {}
    for host, received_at, ttl, silence in seen:
        is_here = presence(received_at, ttl, silence, listening.now, listening.since)
        worst_check, failing = checks.get(host, _CALM)
        state = host_state(is_here, worst_check)
        presences[is_here] += 1
        states[state] += 1
        if is_here is Presence.FRESH:
            ages.append(listening.now - received_at)
        if state is not State.OK:
            standing[host] = (state, is_here)
            ranked.append((-state.severity, -failing, host))
    ranked.sort()
    shown = [host for _, _, host in ranked[:limit]]
    return Fleet(
        listening,
        presences,
        states,
        ReportAges(min(ages), round(statistics.median(ages)), max(ages)) if ages else None,
        tuple(load_collectors(tx)),
        load_fleet_silence(tx).since,
        _load_bad(tx, shown, standing, site),
        find_conflicts(tx, wanted),
    )


def _load_bad(
    tx: Transaction, hosts: list[int], standing: Mapping[int, tuple[State, Presence]], site: Ssh
) -> tuple[BadHost, ...]:
    lines = reading.load_lines(tx, hosts)
    failing = reading.load_failing(tx, hosts)
    silent = (host for host in lines.values() if standing[host.host][1] is not Presence.FRESH)
    diagnoses = find_current(tx, silent)
    told = without_unasked(tx, diagnoses, site)
    return tuple(
        BadHost(
            lines[host], *standing[host], tuple(failing.get(host, ())), diagnoses.get(host), told.get(host)
        )
        for host in hosts
        if host in lines
    )


@click.command("status")
@click.option(
    "--limit", type=click.IntRange(0), default=20, show_default=True, help="How many of the worst hosts."
)
@options.group_option
@options.label_option
@options.json_option
@options.watch_options
@click.pass_obj
def command(
    session: Session,
    limit: int,
    groups: tuple[str, ...],
    labels: options.Labels,
    *,
    as_json: bool,
    watch: bool,
    interval: int,
) -> int:
    """Show the fleet at a glance: how many hosts are how, who listens, and the worst hosts.

    A host stands as its worst check does; a stale one is CRITICAL, and one of unknown presence or
    never seen is at least WARNING, and so is the fleet while a host is in conflict with a machine that
    has the same identity.

    \b
    Examples:
      collector-cli status
      collector-cli status --watch --interval 5s
      collector-cli status --group lab-3 --json | jq .states

    Exit codes: the worst state of the fleet, 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; 3 also when no
    collector listens and nothing worse is known, for a wrong command line, and without a database.
    """
    with session.store() as store:

        def look() -> Fleet:
            with store.transaction(write=False) as tx:
                return look_at_fleet(tx, select(tx, groups, labels), limit, session.loaded.config.ssh)

        if watch:
            return session.watch(look, options.pause(interval), as_json=as_json)
        return session.answer(look(), as_json=as_json)
