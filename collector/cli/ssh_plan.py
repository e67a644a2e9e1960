"""What has to be done so that hosts are reached over SSH as somebody said; doing it again changes nothing."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from collector.cli.ssh_options import all_of, changes
from collector.cli.steps import Outcome, find_records, write_removed
from collector.config import Ssh
from collector.core.ssh_settings import POLLED, SshSettings, merge
from collector.core.status import Event, EventKind, HostRecord
from collector.store.hosts import add_hosts, add_to_groups, find_hosts, remove_host, take_from_groups
from collector.store.reading import HostLine, load_groups, load_lines
from collector.store.ssh_hosts import (
    SshHost,
    load_group_settings,
    load_polled_numbers,
    load_ssh_hosts,
    note_change,
    save_ssh_hosts,
)
from collector.store.statuses import write_events
from collector.store.store import Transaction
from fleetpulse.convert import MAX_NAME

_SPECIAL = ",*?!|/@#\\\"'[]"  # means something else in known_hosts, or to ssh
_UNUSUAL = "(){}<>=;&$`~^+"  # in no name that a network knows: what is called so was no list of names


class Wanted(NamedTuple):
    """A machine, how what is stored of it is to become, and its groups.

    `only_groups`: a polled host is in no others. Unless it `polls`, nobody becomes polled who is not: a machine
    that no host stands for gets no step.
    """

    name: str
    settle: Callable[[SshSettings], SshSettings]
    groups: tuple[str, ...]
    only_groups: bool = False
    polls: bool = True


class Step(NamedTuple):
    """What has to be done for one machine. `host` is None for one that becomes a record.

    `name` is what its record is called, `called` what it was when it was asked for.
    """

    name: str
    called: str
    host: HostLine | None
    host_id: str
    outcome: Outcome
    settings: SshSettings
    polled: bool
    joins: tuple[str, ...]
    leaves: tuple[str, ...]
    changes: tuple[str, ...]


def plan(tx: Transaction, wanted: Sequence[Wanted], site: Ssh) -> list[Step]:
    """Compare what is wanted with what is stored. Raises CliError for a name that is no one host's."""
    new = {one.name for one in wanted if one.polls}
    records = find_records(
        tx, (one.name for one in wanted), lambda name: new_name_problem(name) if name in new else ""
    )
    numbers = sorted(record.host for record in records.values())
    lines = load_lines(tx, numbers)
    stored = {one.host: one for one in load_ssh_hosts(tx, numbers)}
    polled = load_polled_numbers(tx, numbers)
    groups, of_groups = load_groups(tx, numbers), load_group_settings(tx)
    steps = []
    for one in wanted:
        record = records.get(one.name)
        line = lines.get(record.host) if record is not None else None
        if line is None:
            steps += [_creation(one)] if one.polls else []
        else:
            number = line.host
            its_groups = groups.get(number, ())
            was_asked = _is_asked([of_groups[name] for name in its_groups if name in of_groups], site)
            steps.append(
                _change(one, line, stored.get(number), number in polled, its_groups, was_asked=was_asked)
            )
    return steps


def carry_out(tx: Transaction, steps: Sequence[Step], site: Ssh, now: int) -> None:
    """Write what has to be done. Call it in the transaction that made the plan, after `note_change`."""
    _create(tx, [step for step in steps if step.host is None], site, now)
    known = [(step, step.host.host) for step in steps if step.host is not None]
    changed = [(step, host) for step, host in known if step.outcome is Outcome.CHANGED]
    save_ssh_hosts(tx, [(host, step.settings, step.polled) for step, host in changed])
    add_to_groups(tx, [(host, group) for step, host in changed for group in step.joins])
    take_from_groups(tx, [(host, group) for step, host in changed for group in step.leaves])


def bring_about(tx: Transaction, wanted: Sequence[Wanted], site: Ssh, now: int) -> list[Step]:
    """Plan and carry out, in one transaction; what was done."""
    steps = plan(tx, wanted, site)
    if all(step.outcome is Outcome.UNCHANGED for step in steps):
        return steps
    # Whoever does the same at this moment waits here, and then sees the records that were made.
    note_change(tx)
    steps = plan(tx, wanted, site)
    carry_out(tx, steps, site, now)
    return steps


def remove_polled(tx: Transaction, hosts: Iterable[HostLine], now: int) -> list[HostLine]:
    """Delete hosts with all that is stored of them, and write the events; those that were still there."""
    removed = [host for host in hosts if remove_host(tx, host.host)]
    write_removed(tx, removed, now)
    return removed


def name_problem(name: str) -> str:
    """Why keys cannot be trusted of a host that is called so; empty if they can."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or any(map(str.isspace, name)):
        return f"a name has 1 to {MAX_NAME} printable characters without blanks"
    if "@" in name:
        return "a host is called without the user, which --user says"
    special = [character for character in _SPECIAL if character in name]
    if special:
        return f"a name that ssh takes for something else, by {' '.join(special)}"
    if name.startswith("-"):
        return "a name does not begin with a dash"
    return ""


def new_name_problem(name: str) -> str:
    """Why nothing that is polled can be called so; empty if it can."""
    problem = name_problem(name)
    unusual = [character for character in _UNUSUAL if character in name]
    if not problem and unusual:
        return f"no machine is called so, with {' '.join(unusual)}"
    if not problem and ":" in name and not _is_address(name):
        return "a host is called without the port, which --port says"
    return problem


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _creation(wanted: Wanted) -> Step:
    settings = wanted.settle(SshSettings())
    said = (*all_of(settings), *(f"joins {group}" for group in wanted.groups))
    return Step(
        wanted.name,
        wanted.name,
        None,
        str(uuid.uuid4()),
        Outcome.CREATED,
        settings,
        True,
        wanted.groups,
        (),
        said,
    )


def _is_asked(of_groups: Sequence[SshSettings], site: Ssh) -> bool:
    """Whether a host of which nothing is said is asked when its agent is silent."""
    fallback = merge([*of_groups, SshSettings(fallback=site.fallback)]).fallback
    return fallback is not False and (site.has_credentials or any(one.key for one in of_groups))


def _change(
    wanted: Wanted,
    line: HostLine,
    stored: SshHost | None,
    was_polled: bool,
    groups: tuple[str, ...],
    *,
    was_asked: bool,
) -> Step:
    before = stored.settings if stored is not None else SshSettings()
    settings = wanted.settle(before)
    polled = line.agent_version in ("", POLLED) if wanted.polls else was_polled
    # What an agent says of its groups is its own business.
    joins = tuple(group for group in wanted.groups if polled and group not in groups)
    leaves = tuple(group for group in groups if wanted.only_groups and polled and group not in wanted.groups)
    differences = changes(before, settings)
    if polled and not was_polled:
        differences.append("is polled from now on")
    elif (stored is None or stored.problem) and settings.fallback is not False and not was_asked:
        differences.append("SSH is asked from now on when its agent is silent")
    elif (stored is None or stored.problem) and not differences:
        differences.append("is among those of collector-cli ssh list from now on")
    differences += [f"joins {group}" for group in joins] + [f"leaves {group}" for group in leaves]
    outcome = Outcome.CHANGED if differences else Outcome.UNCHANGED
    return Step(
        line.hostname,
        wanted.name,
        line,
        line.host_id,
        outcome,
        settings,
        polled,
        joins,
        leaves,
        tuple(differences),
    )


def _create(tx: Transaction, steps: Sequence[Step], site: Ssh, now: int) -> None:
    if not steps:
        return
    from collector.ssh.target import Resolver  # takes a while, and is needed only now

    resolver, settings_of_groups = Resolver(site), load_group_settings(tx)
    records = []
    for step in steps:
        groups = tuple(sorted(step.joins))
        host = SshHost(
            host=0,
            host_id=step.host_id,
            name=step.name,
            address="",
            interval=0,
            ttl=0,
            is_polled=True,
            settings=step.settings,
            groups=groups,
        )
        target = resolver.target(host, settings_of_groups)
        interval, ttl = round(target.interval * 1000), round(target.ttl * 1000)
        records.append(HostRecord(step.host_id, step.name, "", "", "", "", interval, ttl))
    add_hosts(tx, records, now)
    found = find_hosts(tx, [step.host_id for step in steps])
    numbers = {step.host_id: found[step.host_id].host for step in steps}
    save_ssh_hosts(tx, [(numbers[step.host_id], step.settings, True) for step in steps])
    add_to_groups(tx, [(numbers[step.host_id], group) for step in steps for group in step.joins])
    write_events(tx, [(numbers[step.host_id], step.name, Event(now, EventKind.ADDED)) for step in steps])
