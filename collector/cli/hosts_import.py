"""collector-cli hosts import: the hosts that there should be, from an Ansible inventory."""

from __future__ import annotations

from pathlib import Path

import click

from collector.cli import options
from collector.cli.change import yes_option
from collector.cli.session import Session


@click.command("import", short_help="Say which hosts there should be, from an inventory.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Remove the hosts never seen that are not in the inventory.")
@yes_option
@options.json_option
@click.pass_obj
def command(session: Session, path: Path, *, dry_run: bool, prune: bool, yes: bool, as_json: bool) -> int:
    """Expect the hosts of an inventory, with its groups and labels. Again changes only what differs.

    FILE is the JSON of ansible-inventory --list; - is standard input. A machine that is not known becomes
    a host that is never_seen until it reports. Each host is in the groups of the inventory and in those
    that its agent names, and has the labels of the inventory: the dictionary fleetpulse_labels, of hosts
    or of groups. Groups and labels that were given to it otherwise go.

    All of the machines, or none: a label that is still a template, or makes no sense, is told, and nothing
    is changed. With --prune a host that the inventory does not name stays if it has reported, is enrolled,
    or is polled over SSH, which is told.

    \b
    Examples:
      ansible-inventory --list | collector-cli hosts import - --dry-run
      ansible-inventory --list | collector-cli hosts import - --prune --yes
      ansible-inventory --list > all.json && collector-cli hosts import all.json

    Exit codes: 0 done, or nothing to do; 3 nothing was done, and the message says why.
    """
    from collector.cli import hosts_expected  # takes a while, and a list needs none of it

    return hosts_expected.import_hosts(
        session, path, is_dry_run=dry_run, prune=prune, yes=yes, as_json=as_json
    )
