"""collector-cli ssh add: a machine without an agent is to be polled, or how a host is asked when it is silent."""

from __future__ import annotations

from typing import Any

import click

from collector.cli import options
from collector.cli.change import change
from collector.cli.options import check_groups
from collector.cli.output import line
from collector.cli.session import Session, complain
from collector.cli.ssh_options import given, settings_json, settings_options
from collector.cli.ssh_plan import Step, Wanted, bring_about
from collector.cli.ssh_targets import find_targets
from collector.cli.steps import Outcome
from fleetpulse.model import State


@click.command("add", short_help="Poll a machine, or say how a host is asked.")
@click.argument("name", metavar="HOST")
@click.option("--address", metavar="ADDRESS", help="Where it is, if not by its name.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Put it into this group; may be repeated."
)
@settings_options
@options.json_option
@click.pass_obj
def command(
    session: Session,
    /,
    name: str,
    groups: tuple[str, ...],
    more: tuple[str, ...],
    *,
    as_json: bool,
    **said: Any,
) -> int:
    """Poll a machine without an agent, or say how a host with one is asked when its agent is silent.

    A machine that is not known becomes a host, called HOST. Of one that is known, by its whole name or
    UUID, only what is given changes; an empty value, or 0, takes back what was given before. A host
    that has an agent goes on reporting by that.

    \b
    Examples:
      collector-cli ssh add printer-3 --address 192.0.2.7 --user monitor --group lab-3
      collector-cli ssh add db-1 --jump gate.example.org --interval 1m
      collector-cli ssh add old-switch -o KexAlgorithms=diffie-hellman-group14-sha1
      collector-cli ssh add web-17 --no-fallback

    Exit codes: 0 done, or nothing to do; 3 not done, and the message says why.
    """
    check_groups(groups)
    said_here = given(more, **said)
    site = session.loaded.config.ssh
    with session.store() as store:
        wanted = [Wanted(name, said_here.over, tuple(dict.fromkeys(groups)))]
        [step] = change(store, lambda tx, now: bring_about(tx, wanted, site, now))
        with store.transaction(write=False) as tx:
            [target] = find_targets(tx, [step.host_id], site)
    if as_json:
        session.show_json(
            {
                "hostname": step.name,
                "host_id": step.host_id,
                "outcome": step.outcome.value,
                "mode": "polled" if step.polled else "fallback",
                "changes": step.changes,
                "settings": settings_json(step.settings),
            }
        )
        return State.OK.value
    session.show_line(line(_told(step)))
    if not step.polled:
        when = "never asked" if step.settings.fallback is False else "asked when that is silent"
        session.show_line(line(f"{step.name} reports by its agent; SSH is {when}"))
        if groups:
            complain(f"{step.name} is in the groups that its agent says; --group changed nothing")
    if step.outcome is Outcome.CREATED:
        session.show_line(
            line(f"next: collector-cli ssh trust {step.name} && collector-cli ssh test {step.name}")
        )
    if not target.keys and target.agent is None:
        complain(
            f"{step.name} is not asked over SSH yet: no keys and no agent are set in [ssh] of the configuration"
        )
    return State.OK.value


def _told(step: Step) -> str:
    who = f"{step.name} ({step.host_id})"
    if step.outcome is Outcome.CREATED:
        return f"added {who}, which is polled from now on"
    if step.outcome is Outcome.UNCHANGED:
        return f"{who}: nothing changed"
    return f"{who}: {', '.join(step.changes)}"
