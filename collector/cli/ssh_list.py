"""collector-cli ssh list: every host of which somebody said how it is reached over SSH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from collector.cli import options
from collector.cli.diagnoses import diagnosis_json, find_current
from collector.cli.find import find_hosts
from collector.cli.output import Cell, Line, Page, Table, line
from collector.cli.session import Session, select
from collector.cli.ssh_options import settings_json, told
from collector.cli.ssh_places import mode_of, way
from collector.cli.times import utc
from collector.core.render import duration
from collector.core.silence import Presence
from collector.core.ssh_settings import SshSettings
from collector.store.collectors import Listening, load_listening
from collector.store.diagnoses import StoredDiagnosis
from collector.store.reading import HostLine, count_hosts, load_lines
from collector.store.selection import Selection, selected
from collector.store.ssh_hosts import SshHost, load_group_settings, load_ssh_hosts
from collector.store.ssh_shares import load_holders, share_of
from collector.store.store import Transaction
from fleetpulse.model import State

if TYPE_CHECKING:
    from collector.config import Ssh
    from collector.ssh.target import Target


@dataclass(frozen=True)
class Reached:
    """A host, how it is reached when all settings are put together, and how it is."""

    ssh: SshHost
    line: HostLine
    settings: SshSettings
    target: Target
    collector: str
    diagnosis: StoredDiagnosis | None

    @property
    def mode(self) -> str:
        """What SSH is for: its reports, or to find out why its agent is silent, if that."""
        return mode_of(self.ssh)

    def why(self) -> Cell:
        """What is wrong."""
        if self.ssh.problem:
            return Cell(self.ssh.problem, "critical")
        if self.diagnosis is None:
            return Cell("-", "dim")
        return Cell(self.diagnosis.diagnosis.line, "critical")


@dataclass(frozen=True)
class Listing:
    """The hosts, and the groups with settings of their own and the number of their hosts."""

    listening: Listening
    hosts: Sequence[Reached]
    groups: Mapping[str, tuple[SshSettings, int]]
    can_log_in: bool
    is_of_names: bool

    @property
    def state(self) -> State:
        """A listing judges nothing."""
        return State.OK

    def page(self, rows: int | None) -> Page:
        """Two tables."""
        page: list[Line | Table] = []
        if not self.can_log_in:
            page.append(
                line(
                    Cell("Nothing is asked over SSH", "warning"),
                    ": no keys and no agent are set in [ssh] of the configuration.",
                )
            )
        if self.hosts:
            headings = ("HOST", "MODE", "WHERE", "EVERY", "COLLECTOR", "HEARD", "WHY")
            page.append(Table(headings, [self._row(one) for one in self.hosts[:rows]]))
        else:
            none = "none of them" if self.is_of_names else "no host"
            page.append(line(f"{none} is polled, or has SSH settings; see: collector-cli ssh add --help"))
        if self.groups:
            cells = [
                (Cell(name, "strong"), Cell(str(number)), Cell(told(settings)))
                for name, (settings, number) in self.groups.items()
            ]
            page += [line(), Table(("GROUP", "HOSTS", "SETTINGS"), cells)]
        return page

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "now": utc(self.listening.now),
            "hosts": [self._host_json(one) for one in self.hosts],
            "groups": [
                {"name": name, "hosts": number, "settings": settings_json(settings)}
                for name, (settings, number) in self.groups.items()
            ],
        }

    def _host_json(self, one: Reached) -> dict[str, object]:
        target = one.target
        return {
            "hostname": one.ssh.name,
            "host_id": one.ssh.host_id,
            "mode": one.mode,
            "presence": one.line.presence(self.listening).value,
            "address": target.address,
            "port": target.port,
            "user": target.user,
            "keys": [str(key) for key in target.keys],
            "jump": one.settings.jump if target.jump else None,
            "interval_seconds": target.interval,
            "timeout_seconds": target.timeout,
            "options": dict(target.options),
            "groups": one.ssh.groups,
            "settings": settings_json(one.ssh.settings),
            "problem": one.ssh.problem or None,
            "collector": one.collector or None,
            "last_report_at": utc(one.line.received_at),
            "report_age_seconds": (self.listening.now - one.line.received_at) / 1000
            if one.line.received_at
            else None,
            "diagnosis": diagnosis_json(one.diagnosis),
        }

    def _row(self, one: Reached) -> tuple[Cell, ...]:
        received_at = one.line.received_at
        heard = f"{duration(self.listening.now - received_at)} ago" if received_at else "never"
        return (
            Cell(one.ssh.name, "strong"),
            Cell(one.mode, "" if one.ssh.is_polled else "dim"),
            Cell(way(one.target)),
            Cell(duration(one.target.interval * 1000) if one.ssh.is_polled else "-"),
            Cell(one.collector or "-"),
            Cell(heard, "" if one.line.presence(self.listening) is Presence.FRESH else "critical"),
            one.why(),
        )


def list_reached(tx: Transaction, site: Ssh, wanted: Selection, names: tuple[str, ...] = ()) -> Listing:
    """Those hosts, of these names if any is given, and the settings of groups. Raises CliError, ConfigError."""
    from collector.ssh.target import Resolver

    listening = load_listening(tx)
    of_groups = load_group_settings(tx)
    numbers = [host.host for host in find_hosts(tx, names)] if names else None
    hosts = load_ssh_hosts(tx, numbers)
    chosen = set(selected(tx, [one.host for one in hosts], wanted))
    hosts = [one for one in hosts if one.host in chosen]
    lines = load_lines(tx, [one.host for one in hosts])
    hosts = [one for one in hosts if one.host in lines]
    diagnoses = find_current(tx, [lines[one.host] for one in hosts])
    holders = load_holders(tx)
    resolver = Resolver(site)
    reached = [
        Reached(
            one,
            lines[one.host],
            resolver.settings(one, of_groups),
            resolver.target(one, of_groups),
            holders.get(share_of(one.host), ""),
            diagnoses.get(one.host),
        )
        for one in hosts
    ]
    shown_groups = wanted.groups or {group for one in hosts for group in one.groups}
    shown = {
        name: (settings, count_hosts(tx, Selection((name,))))
        for name, settings in of_groups.items()
        if not names and (wanted.is_all or name in shown_groups)
    }
    return Listing(
        listening,
        reached,
        shown,
        site.has_credentials or (bool(reached) and all(one.target.keys for one in reached)),
        bool(names),
    )


@click.command("list", short_help="Who is polled, how, and what is wrong.")
@click.argument("names", nargs=-1, metavar="[HOST]...")
@options.group_option
@options.label_option
@options.json_option
@click.pass_obj
def command(
    session: Session,
    names: tuple[str, ...],
    groups: tuple[str, ...],
    labels: options.Labels,
    *,
    as_json: bool,
) -> int:
    """List the hosts that are polled, or have SSH settings of their own, and the groups with settings.

    With HOST, a whole hostname or UUID, only these hosts.

    WHERE is how a host is reached when its own settings, those of its groups, the ssh_config file's and
    the configuration's are put together. MODE is polled for a host without an agent; fallback for one
    that is asked when its agent is silent; never where that is switched off. COLLECTOR is the one that
    asks it, and WHY what was wrong when it was asked last.

    \b
    Examples:
      collector-cli ssh list --group lab-3
      collector-cli ssh list --json | jq -r '.hosts[] | select(.diagnosis) | .hostname'

    Exit codes: 0, whatever the hosts are like; 3 for a wrong command line or without a database.
    """
    site = session.loaded.config.ssh
    with session.store() as store, store.transaction(write=False) as tx:
        listing = list_reached(tx, site, select(tx, groups, labels), names)
    return session.answer(listing, as_json=as_json)
