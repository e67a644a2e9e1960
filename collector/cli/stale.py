"""collector-cli stale: who is silent, since when, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from collector.cli import conflicts, options
from collector.cli.conflicts import Conflict, find_conflicts
from collector.cli.diagnoses import diagnosis_json, find_current, kinds, without_unasked
from collector.cli.output import Cell, Line, Page, Table, line, state_cell, summary
from collector.cli.session import Session, select
from collector.cli.ssh_places import with_addresses
from collector.cli.times import local, utc
from collector.config import Ssh
from collector.core.render import count, duration, listed
from collector.core.silence import Presence
from collector.core.standing import silence_state, worst
from collector.store import reading
from collector.store.collectors import Listening, load_listening
from collector.store.diagnoses import StoredDiagnosis
from collector.store.labels import load_labels
from collector.store.reading import CheckCounts, HostLine
from collector.store.selection import Selection
from collector.store.store import Transaction
from fleetpulse.model import State

_ORDER = (Presence.STALE, Presence.UNKNOWN, Presence.NEVER_SEEN)
_SITE = Ssh()
STYLES = {Presence.STALE: "critical", Presence.UNKNOWN: "warning", Presence.NEVER_SEEN: "warning"}


@dataclass(frozen=True)
class SilentHosts:
    """The hosts that are not fresh, the most certain and the most recent first; and those with a double.

    `counted` are the diagnoses that the summary counts.
    """

    listening: Listening
    total: int
    hosts: tuple[tuple[HostLine, Presence], ...]
    checks: Mapping[int, CheckCounts]
    groups: Mapping[int, tuple[str, ...]]
    labels: Mapping[int, Mapping[str, str]]
    diagnoses: Mapping[int, StoredDiagnosis]
    counted: Mapping[int, StoredDiagnosis]
    conflicts: tuple[Conflict, ...]

    @property
    def state(self) -> State:
        """CRITICAL for a stale host, WARNING for others, UNKNOWN if nobody listens to know better."""
        silence = silence_state(
            (presence for _, presence in self.hosts), listening=self.listening.since is not None
        )
        return worst((silence, State.WARNING if self.conflicts else State.OK))

    def page(self, rows: int | None) -> Page:
        """A summary, then a table."""
        below, rows = conflicts.beside(self.conflicts, self.listening.now, rows)
        page: list[Line | Table] = [summary(self.state, self.summary)]
        if self.listening.since is None:
            page.append(nobody_listens())
        if self.hosts:
            page.append(
                Table(
                    ("HOST", "PRESENCE", "FOR", "SINCE", "LAST STATE", "ADDRESS", "GROUPS", "WHY"),
                    [self._row(host, presence) for host, presence in self.hosts[:rows]],
                )
            )
        return page + below

    @property
    def summary(self) -> str:
        """What is the case, in one line."""
        stale = [host for host, presence in self.hosts if presence is Presence.STALE]
        others = [host for host, presence in self.hosts if presence is not Presence.STALE]
        of_all = f"of {count(self.total, 'host')}"
        parts = [f"{len(stale) or 'none'} {of_all} silent" + (f": {self._named(stale)}" if stale else "")]
        if others:
            parts.append(f"{len(others)} of unknown presence or never seen: {self._named(others)}")
        if self.conflicts:
            parts.append(conflicts.names(self.conflicts))
        if self.listening.since is None:
            parts.insert(1 if stale else 0, "no collector is listening")
        return "; ".join(parts)

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "state": self.state.name,
            "summary": self.summary,
            "now": utc(self.listening.now),
            "listening_since": utc(self.listening.since or 0),
            "hosts_total": self.total,
            "hosts": [
                {
                    "hostname": host.hostname,
                    "host_id": host.host_id,
                    "presence": presence.value,
                    "silent_since": utc(host.silent_since),
                    "silent_seconds": (self.listening.now - host.silent_since) / 1000,
                    "last_report_at": utc(host.received_at),
                    "last_state": state.name if (state := self._last_state(host)) is not None else None,
                    "address": host.address,
                    "groups": self.groups.get(host.host, ()),
                    "labels": self.labels.get(host.host, {}),
                    "ttl_seconds": host.ttl / 1000,
                    "diagnosis": diagnosis_json(self.diagnoses.get(host.host)),
                }
                for host, presence in self.hosts
            ],
            "conflicts": [conflict.as_json() for conflict in self.conflicts],
        }

    def _named(self, hosts: Sequence[HostLine]) -> str:
        found = (self.counted[host.host].kind.value for host in hosts if host.host in self.counted)
        return listed([host.hostname for host in hosts]) + kinds(found)

    def _row(self, host: HostLine, presence: Presence) -> tuple[Cell, ...]:
        found = self.diagnoses.get(host.host)
        return (
            Cell(host.hostname, "strong"),
            Cell(presence.value, STYLES[presence]),
            Cell(duration(self.listening.now - host.silent_since)),
            Cell(local(host.silent_since), "dim"),
            state_cell(self._last_state(host)),
            Cell(host.address or "-"),
            Cell(",".join(self.groups.get(host.host, ())) or "-"),
            Cell(found.diagnosis.line if found else "-"),
        )

    def _last_state(self, host: HostLine) -> State | None:
        if not host.received_at:
            return None
        return self.checks[host.host].worst if host.host in self.checks else State.OK


def nobody_listens() -> Line:
    """Why hosts are of unknown presence."""
    return line(
        Cell("No collector is listening", "critical"),
        ": a host past its time-to-live is of unknown presence, not stale. Run: collector-cli doctor",
    )


def find_silent(tx: Transaction, wanted: Selection, older_than: int, site: Ssh = _SITE) -> SilentHosts:
    """Those hosts that have not been heard for longer than they said, and for `older_than` milliseconds."""
    listening = load_listening(tx)
    found = [
        (host, presence)
        for host in reading.load_silent(tx, listening, wanted)
        if (presence := host.presence(listening)) is not Presence.FRESH
        and listening.now - host.silent_since >= older_than
    ]
    found.sort(key=lambda pair: (_ORDER.index(pair[1]), -pair[0].silent_since, pair[0].hostname))
    numbers = [host.host for host, _ in found]
    placed = with_addresses(tx, (host for host, _ in found), site)
    found = [(host, presence) for host, (_, presence) in zip(placed, found, strict=True)]
    diagnoses = find_current(tx, placed)
    return SilentHosts(
        listening,
        reading.count_hosts(tx, wanted),
        tuple(found),
        reading.load_check_counts(tx, numbers),
        reading.load_groups(tx, numbers),
        load_labels(tx, numbers),
        diagnoses,
        without_unasked(tx, diagnoses, site),
        find_conflicts(tx, wanted),
    )


@click.command("stale")
@click.option(
    "--older-than",
    type=options.duration,
    default="0s",
    metavar="DURATION",
    help="Only hosts not heard for at least this long (15s, 5m, 2h, 1d).",
)
@options.group_option
@options.label_option
@options.json_option
@options.watch_options
@click.pass_obj
def command(
    session: Session,
    older_than: int,
    groups: tuple[str, ...],
    labels: options.Labels,
    *,
    as_json: bool,
    watch: bool,
    interval: int,
) -> int:
    """List the hosts that are silent, since when, why, and how they were then.

    A host is stale when no report came for longer than its own time-to-live, by the collector's
    clock. It is of unknown presence when nobody was listening for long enough to tell, and
    never_seen when it is expected but has sent nothing yet.

    WHY is what a probe over SSH has found out about this silence; "-" if none was made yet.

    A host in conflict is listed as well: another machine says that it is it, and what that machine
    has to report is refused.

    \b
    Examples:
      collector-cli stale
      collector-cli stale --older-than 5m --group lab-3
      collector-cli stale --label site=berlin --label canary
      collector-cli stale --json | jq -r '.hosts[] | select(.diagnosis.kind == "agent dead, host up") | .hostname'

    Exit codes: 0 nobody is silent; 1 only hosts of unknown presence, never seen, or in conflict; 2 at least one host is stale; 3 the question cannot be answered: wrong command line, no
    database, or no collector listening.
    """
    with session.store() as store:

        def look() -> SilentHosts:
            with store.transaction(write=False) as tx:
                return find_silent(tx, select(tx, groups, labels), older_than, session.loaded.config.ssh)

        if watch:
            return session.watch(look, options.pause(interval), as_json=as_json)
        return session.answer(look(), as_json=as_json)
