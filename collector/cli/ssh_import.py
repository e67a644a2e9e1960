"""collector-cli ssh import: the machines of an Ansible inventory are reached as Ansible reaches them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import msgspec

from collector.cli import options
from collector.cli.ansible_ssh import Refused, Understood, understand
from collector.cli.change import ask, change, yes_option
from collector.cli.find import NO_SUCH_HOST, describe
from collector.cli.inventory import Machine
from collector.cli.inventory_file import read_inventory
from collector.cli.output import Cell, Line, Page, Table, line, summary
from collector.cli.session import CliError, Session, complain
from collector.cli.ssh_algorithms import check_algorithms
from collector.cli.ssh_places import tell_of_trusted
from collector.cli.ssh_plan import Step, Wanted, bring_about, plan, remove_polled
from collector.cli.steps import Outcome, names_json, refusal, tally
from collector.cli.steps import rows as rows_of
from collector.config import Ssh
from collector.core.render import count, listed
from collector.core.ssh_settings import SettingsError, SshSettings
from collector.store.hosts import find_hosts
from collector.store.reading import HostLine, load_lines
from collector.store.ssh_hosts import load_polled_numbers, note_change
from collector.store.store import Store, Transaction
from fleetpulse.convert import MAX_GROUPS
from fleetpulse.model import State

_KEPT = ("interval", "timeout", "concurrency", "fallback")  # what an inventory need not say


@dataclass(frozen=True)
class Imported:
    """What was done, or would be; of the machines that are left out, why."""

    steps: list[Step]
    removed: list[HostLine]
    left_out: Mapping[str, str]
    untrusted: list[str]
    is_dry_run: bool

    @property
    def state(self) -> State:
        """Done is done."""
        return State.OK

    def page(self, rows: int | None) -> Page:
        """The counts, then each machine."""
        text = tally(self.steps, len(self.removed), is_dry_run=self.is_dry_run)
        page: list[Line | Table] = [summary(self.state, text)]
        cells = rows_of(self.steps, self.removed)
        cells += [(Cell(name, "strong"), Cell("left out"), Cell(why)) for name, why in self.left_out.items()]
        page.append(Table(("HOST", "WHAT", "CHANGES"), cells[:rows]))
        if self.untrusted:
            next_one = f"collector-cli ssh test {self.untrusted[0]}"
            page.append(line(f"next: collector-cli ssh trust --untrusted && {next_one}"))
        return page

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "dry_run": self.is_dry_run,
            **names_json(self.steps, self.removed),
            "left_out": list(self.left_out),
        }


@click.command("import", short_help="The same for the machines of an inventory.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    help="Put all of them into this group, too; may be repeated.",
)
@click.option(
    "--no-poll", is_flag=True, help="Only say how hosts are asked while their agents are silent; add none."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Remove the polled hosts that are not in the inventory.")
@yes_option
@options.json_option
@click.pass_obj
def command(
    session: Session,
    path: Path,
    groups: tuple[str, ...],
    *,
    no_poll: bool,
    dry_run: bool,
    prune: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Poll the machines of an inventory, reached as Ansible reaches them. Again changes only what differs.

    FILE is the JSON of ansible-inventory --list, or has one name a line; - is standard input. Address,
    port, user, key, jump host and options are taken from the variables that Ansible has for them, and
    replace what was said before; fleetpulse_ssh_interval and fleetpulse_ssh_timeout may be set, too. A
    polled host is in the groups of the inventory and no others. Hosts that have an agent get settings
    only. Machines that Ansible does not reach over SSH are left out.

    With --no-poll nobody becomes polled who is not, and groups stay as they are: also a host that was never
    seen gets settings only, for when its agent should have come and did not. Machines that are no hosts yet
    are left out.

    All of the machines, or none: a variable that is still a template, or makes no sense, is told, and
    nothing is changed.

    \b
    Examples:
      ansible-inventory --list | collector-cli ssh import - --dry-run
      ansible-inventory --list | collector-cli ssh import - --prune --yes
      ansible-inventory --list | collector-cli ssh import - --no-poll
      collector-cli ssh import names.txt --group lab-3

    Exit codes: 0 done, or nothing to do; 3 nothing was done, and the message says why.
    """
    options.check_groups(groups)
    if no_poll and groups:
        raise click.UsageError("--group does not go with --no-poll, which leaves groups as they are")
    understood = _understand(read_inventory(path))
    wanted = _wanted(understood, groups, polls=not no_poll)
    left_out = {
        name: f"ansible_connection is {said.other_connection}"
        for name, (_, said) in understood.items()
        if said.other_connection
    }
    site = session.loaded.config.ssh
    with session.store() as store:
        surplus: list[HostLine] = []
        untrusted: list[str] = []
        if dry_run or prune:
            with store.transaction(write=False) as tx:
                steps = plan(tx, wanted, site)
                surplus = _surplus(tx, steps, left_out) if prune else []
        if not dry_run:
            if surplus and not yes:
                ask(
                    f"Remove {count(len(surplus), 'host')} that the inventory does not name?",
                    map(describe, surplus),
                )
            steps, surplus, untrusted = _carry_out(store, wanted, site, surplus)
    _note_ignored(understood)
    left_out |= dict.fromkeys(_unknown(wanted, steps), NO_SUCH_HOST)
    return session.answer(Imported(steps, surplus, left_out, untrusted, dry_run), as_json=as_json)


def _carry_out(
    store: Store, wanted: list[Wanted], site: Ssh, surplus: list[HostLine]
) -> tuple[list[Step], list[HostLine], list[str]]:
    """What was done, who was removed, and the names of the new hosts that nobody vouches for."""

    def write(tx: Transaction, now: int) -> tuple[list[Step], list[HostLine]]:
        done = bring_about(tx, wanted, site, now)
        return done, _prune(tx, surplus, now)

    steps, removed = change(store, write)
    with store.transaction(write=False) as tx:
        untrusted = _untrusted(tx, steps, site)
        if removed:
            tell_of_trusted(tx, [host.hostname for host in removed])
    return steps, removed, untrusted


def _wanted(
    understood: Mapping[str, tuple[Machine, Understood]], others: tuple[str, ...], *, polls: bool
) -> list[Wanted]:
    """What becomes of the machines that Ansible reaches over SSH; the others are left out."""
    return [
        Wanted(name, partial(_settled, said.settings), _groups(name, machine, others), only_groups=True)
        if polls
        else Wanted(name, partial(_settled, said.settings), (), polls=False)
        for name, (machine, said) in understood.items()
        if not said.other_connection
    ]


def _unknown(wanted: Sequence[Wanted], steps: Sequence[Step]) -> list[str]:
    """The machines that no host stands for, and for which none was made."""
    known = {step.called for step in steps}
    return [one.name for one in wanted if one.name not in known]


def _untrusted(tx: Transaction, steps: list[Step], site: Ssh) -> list[str]:
    """The names of the hosts that were created and that nobody vouches for."""
    created = {step.host_id for step in steps if step.outcome is Outcome.CREATED}
    if not created:
        return []
    from collector.cli.ssh_targets import targets_of
    from collector.cli.ssh_untrusted import untrusted

    numbers = [host.host for host in find_hosts(tx, sorted(created)).values()]
    return [
        one.name for one in untrusted(tx, targets_of(tx, list(load_lines(tx, numbers).values()), site), site)
    ]


def _understand(machines: Mapping[str, Machine]) -> dict[str, tuple[Machine, Understood]]:
    understood, refused = {}, []
    checked: set[tuple[tuple[str, str], ...]] = set()
    for name, machine in machines.items():
        try:
            said = understand(machine.variables)
            _check_once(said.settings.options, checked)
        except (Refused, SettingsError) as error:
            refused.append(f"{name}: {error}")
        else:
            understood[name] = machine, said
    if refused:
        raise refusal(refused)
    return understood


def _check_once(options: Mapping[str, str], checked: set[tuple[tuple[str, str], ...]]) -> None:
    """Most machines have the same options."""
    known = tuple(options.items())
    if known and known not in checked:
        check_algorithms(options)
        checked.add(known)


def _settled(said: SshSettings, stored: SshSettings) -> SshSettings:
    """The inventory says all of how a host is reached, and need not say how often."""
    kept = {name: getattr(said, name) or getattr(stored, name) for name in _KEPT[:3]}
    return msgspec.structs.replace(said, **kept, fallback=stored.fallback)


def _groups(name: str, machine: Machine, others: tuple[str, ...]) -> tuple[str, ...]:
    groups = tuple(dict.fromkeys((*machine.groups, *others)))
    if len(groups) > MAX_GROUPS:
        raise CliError(f"{name} would be in {len(groups)} groups; at most {MAX_GROUPS} are possible")
    return groups


def _surplus(tx: Transaction, steps: list[Step], left_out: Mapping[str, str]) -> list[HostLine]:
    """The polled hosts that the inventory does not name."""
    named = {step.host.host for step in steps if step.host is not None}
    lines = load_lines(tx, sorted(load_polled_numbers(tx) - named))
    kept = {name.casefold() for name in left_out}
    found = [host for host in lines.values() if host.hostname.casefold() not in kept]
    return sorted(found, key=lambda host: (host.hostname, host.host_id))


def _prune(tx: Transaction, surplus: list[HostLine], now: int) -> list[HostLine]:
    """Remove those that are still polled: an agent may have spoken meanwhile."""
    if not surplus:
        return []
    note_change(tx)
    polled = load_polled_numbers(tx, [host.host for host in surplus])
    return remove_polled(tx, [host for host in surplus if host.host in polled], now)


def _note_ignored(understood: Mapping[str, tuple[Machine, Understood]]) -> None:
    ignored = Counter(name for _, said in understood.values() for name in dict.fromkeys(said.ignored))
    if ignored:
        names = listed([f"{name} of {count(number, 'machine')}" for name, number in sorted(ignored.items())])
        complain(f"options of ssh without a meaning here are left out: {names}")
