"""collector-cli ssh group: how the hosts of a group are reached."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from collector.cli import options
from collector.cli.change import change
from collector.cli.output import line
from collector.cli.session import Session, complain
from collector.cli.ssh_options import changes, given, settings_json, settings_options, told
from collector.core.render import count
from collector.core.ssh_settings import SshSettings
from collector.store.reading import count_hosts
from collector.store.selection import Selection
from collector.store.ssh_hosts import load_group_settings, note_change, save_group_settings
from collector.store.store import Transaction
from fleetpulse.model import State


class _Done(NamedTuple):
    before: SshSettings
    after: SshSettings
    hosts: int


@click.command("group", short_help="Say how the hosts of a group are reached.")
@click.argument("name", metavar="NAME")
@settings_options
@click.option(
    "--concurrency", type=click.IntRange(0), metavar="N", help="How many of its hosts are polled at once."
)
@click.option("--clear", is_flag=True, help="Say nothing of the group any more.")
@options.json_option
@click.pass_obj
def command(
    session: Session, /, name: str, more: tuple[str, ...], *, clear: bool, as_json: bool, **said: Any
) -> int:
    """Say how the hosts of a group are reached over SSH; without options, show what is said.

    Only what is given changes; an empty value, or 0, takes back what was given before. What is said
    of a host itself wins; of several groups that say the same, the first by name does.

    \b
    Examples:
      collector-cli ssh group lab-3 --jump gate.example.org --key /etc/fleetpulse/lab-3.key
      collector-cli ssh group slow-links --interval 5m --concurrency 5
      collector-cli ssh group lab-3
      collector-cli ssh group lab-3 --clear

    Exit codes: 0 done, shown, or nothing to do; 3 not done, and the message says why.
    """
    options.check_groups((name,), "NAME")
    said_here = given(more, **said)
    if clear and not said_here.is_nothing:
        raise click.UsageError("--clear goes without other settings")

    def write(tx: Transaction, _now: int) -> _Done:
        before = load_group_settings(tx).get(name, SshSettings())
        after = SshSettings() if clear else said_here.over(before)
        if after != before or clear:
            save_group_settings(tx, name, after)
            note_change(tx)
        return _Done(before, after, count_hosts(tx, Selection((name,))))

    with session.store() as store:
        if said_here.is_nothing and not clear:
            with store.transaction(write=False) as tx:
                stored = load_group_settings(tx).get(name, SshSettings())
                done = _Done(stored, stored, count_hosts(tx, Selection((name,))))
        else:
            done = change(store, write)
    if as_json:
        session.show_json(
            {"name": name, "hosts": done.hosts, "settings": settings_json(done.after)},
        )
        return State.OK.value
    differences = changes(done.before, done.after)
    if said_here.is_nothing and not clear:
        session.show_line(line(f"{name}, {count(done.hosts, 'host')}: {told(done.after)}"))
    else:
        session.show_line(
            line(f"{name}, {count(done.hosts, 'host')}: {', '.join(differences) or 'nothing changed'}")
        )
    if not done.hosts:
        complain(f"no host is in group {name} yet")
    return State.OK.value
