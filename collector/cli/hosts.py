"""collector-cli hosts: every host, and those that should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import click

from collector.cli import hosts_await, hosts_import, options
from collector.cli.diagnoses import find_current, source
from collector.cli.output import Cell, Line, Page, Table, line, state_cell
from collector.cli.session import Session, select
from collector.cli.ssh_places import with_addresses
from collector.cli.times import utc
from collector.config import Ssh
from collector.core.render import count, duration
from collector.core.silence import Presence
from collector.store import reading
from collector.store.certificates import CertificateRow
from collector.store.collectors import Listening, load_listening
from collector.store.conflicts import load_conflicts
from collector.store.labels import load_labels
from collector.store.reading import HostLine
from collector.store.selection import Selection
from collector.store.ssh_hosts import load_polled_numbers
from collector.store.store import Transaction
from fleetpulse.model import State

_PRESENCE_STYLES = {
    Presence.FRESH: "ok",
    Presence.STALE: "critical",
    Presence.UNKNOWN: "warning",
    Presence.NEVER_SEEN: "warning",
}


@dataclass(frozen=True)
class Hosts:
    """Hosts by name; `states` holds the worst check state of those that ever reported.

    `labels` and `certificates` are read only where they are shown.
    """

    listening: Listening
    hosts: tuple[HostLine, ...]
    matching: int
    states: Mapping[int, State]
    groups: Mapping[int, tuple[str, ...]]
    labels: Mapping[int, Mapping[str, str]]
    in_conflict: frozenset[int]
    certificates: Mapping[int, CertificateRow]
    sources: Mapping[int, str]

    @property
    def state(self) -> State:
        """A listing judges nothing."""
        return State.OK

    def page(self, rows: int | None) -> Page:
        """A table."""
        table = Table(
            ("HOST", "PRESENCE", "STATE", "HEARD", "ADDRESS", "SOURCE", "VERSION", "EVERY", "TTL", "GROUPS"),
            [self._row(host) for host in self.hosts[:rows]],
        )
        page: list[Line | Table] = [table]
        hidden = self.matching - len(table.rows)
        if hidden > 0:
            page.append(line(Cell(f"and {count(hidden, 'more host')}", "dim")))
        return page

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "now": utc(self.listening.now),
            "hosts_matching": self.matching,
            "hosts": [
                {
                    "hostname": host.hostname,
                    "host_id": host.host_id,
                    "presence": host.presence(self.listening).value,
                    "state": self.states[host.host].name if host.host in self.states else None,
                    "last_report_at": utc(host.received_at),
                    "report_age_seconds": (self.listening.now - host.received_at) / 1000
                    if host.received_at
                    else None,
                    "address": host.address,
                    "agent_version": host.agent_version,
                    "source": self.sources[host.host],
                    "interval_seconds": host.interval / 1000,
                    "ttl_seconds": host.ttl / 1000,
                    "groups": self.groups.get(host.host, ()),
                    "labels": self.labels.get(host.host, {}),
                    "added_at": utc(host.added_at),
                    "in_conflict": host.host in self.in_conflict,
                    **_certificate_json(self.certificates.get(host.host)),
                }
                for host in self.hosts
            ],
        }

    def _row(self, host: HostLine) -> tuple[Cell, ...]:
        presence = host.presence(self.listening)
        heard = f"{duration(self.listening.now - host.received_at)} ago" if host.received_at else "never"
        return (
            Cell(host.hostname, "strong"),
            self._presence_cell(host, presence),
            state_cell(self.states.get(host.host)),
            Cell(heard),
            Cell(host.address or "-"),
            Cell(self.sources[host.host]),
            Cell(host.agent_version or "-"),
            Cell(duration(host.interval)),
            Cell(duration(host.ttl)),
            Cell(",".join(self.groups.get(host.host, ())) or "-"),
        )

    def _presence_cell(self, host: HostLine, presence: Presence) -> Cell:
        style = _PRESENCE_STYLES[presence]
        if host.host not in self.in_conflict:
            return Cell(presence.value, style)
        return Cell(f"{presence.value},conflict", style if style == "critical" else "warning")


def _certificate_json(certificate: CertificateRow | None) -> dict[str, object]:
    return {
        "certificate_expires_at": utc(certificate.not_after) if certificate else None,
        "certificate_issuer": certificate.issuer.hex() if certificate else None,
    }


def list_hosts(
    tx: Transaction,
    wanted: Selection,
    wanted_states: tuple[State, ...],
    wanted_presences: tuple[Presence, ...],
    limit: int | None,
    site: Ssh,
    *,
    only_conflicts: bool = False,
    in_full: bool = False,
) -> Hosts:
    """The hosts that match, by name; `in_full` with their labels and certificates."""
    listening = load_listening(tx)
    in_conflict = frozenset(load_conflicts(tx))
    # Which hosts match on anything else is found out here, and takes all of them.
    takes_all = bool(wanted_states or wanted_presences or only_conflicts)
    hosts = reading.load_hosts(tx, wanted, None if takes_all else limit)
    if only_conflicts:
        hosts = [host for host in hosts if host.host in in_conflict]
    counts = reading.load_check_counts(tx, [host.host for host in hosts])
    states = {
        host.host: counts[host.host].worst if host.host in counts else State.OK
        for host in hosts
        if host.received_at
    }
    matching = [
        host
        for host in hosts
        if (not wanted_states or states.get(host.host) in wanted_states)
        and (not wanted_presences or host.presence(listening) in wanted_presences)
    ]
    shown = tuple(with_addresses(tx, matching[:limit], site))
    numbers = [host.host for host in shown]
    diagnoses = find_current(tx, (host for host in shown if host.presence(listening) is not Presence.FRESH))
    polled = load_polled_numbers(tx, numbers)
    return Hosts(
        listening,
        shown,
        len(matching) if takes_all or limit is None else reading.count_hosts(tx, wanted),
        states,
        reading.load_groups(tx, numbers),
        load_labels(tx, numbers) if in_full else {},
        in_conflict,
        reading.load_current_certificates(tx, numbers) if in_full else {},
        {host: source(diagnoses.get(host), polled=host in polled) for host in numbers},
    )


@click.group(
    "hosts",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="[import FILE | await FILE]",
)
@options.group_option
@options.label_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.name.lower() for state in State], case_sensitive=False),
    help="Only hosts whose worst check is in this state; may be repeated.",
)
@click.option(
    "--presence",
    "presences",
    multiple=True,
    type=click.Choice([presence.value for presence in Presence]),
    help="Only hosts of this presence; may be repeated.",
)
@click.option("--conflict", is_flag=True, help="Only hosts that another machine claims to be.")
@click.option("--limit", type=click.IntRange(1), help="At most this many hosts. [default: all]")
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    groups: tuple[str, ...],
    labels: options.Labels,
    states: tuple[str, ...],
    presences: tuple[str, ...],
    limit: int | None,
    *,
    conflict: bool,
    as_json: bool,
) -> int:
    """List every host: its presence, its worst check, when it was heard, its address and version.

    Or, with import, say which hosts there should be, and with await, wait until they report: see
    collector-cli hosts import --help and collector-cli hosts await --help.

    The state is that of the last report, also of a host that has gone silent since. SOURCE is where
    it comes from: ssh for a machine without an agent, and while SSH is asked because the agent is silent.

    \b
    Examples:
      collector-cli hosts --group lab-3
      collector-cli hosts --state critical --state unknown
      collector-cli hosts --label site=berlin --label canary
      collector-cli hosts --json | jq -r '.hosts[] | [.hostname, .agent_version] | @tsv'

    Exit codes: 0, whatever the hosts are like; 3 for a wrong command line or without a database.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options(ctx)
        return State.OK.value
    session: Session = ctx.obj
    with session.store() as store, store.transaction(write=False) as tx:
        found = list_hosts(
            tx,
            select(tx, groups, labels),
            tuple(State[state.upper()] for state in states),
            tuple(Presence(presence) for presence in presences),
            limit,
            session.loaded.config.ssh,
            only_conflicts=conflict,
            in_full=as_json,
        )
    return session.answer(found, as_json=as_json)


def _refuse_options(ctx: click.Context) -> None:
    """What narrows the list means nothing ahead of another command."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} does not go ahead of {ctx.invoked_subcommand}", ctx)


command.add_command(hosts_import.command)
command.add_command(hosts_await.command)
