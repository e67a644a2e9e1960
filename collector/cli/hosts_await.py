"""collector-cli hosts await: until all hosts of an inventory report."""

from __future__ import annotations

from pathlib import Path

import click

from collector.cli import options
from collector.cli.session import Session


@click.command("await", short_help="Wait until all hosts of an inventory report.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--timeout",
    type=options.duration,
    default="2m",
    show_default=True,
    metavar="DURATION",
    help="How long to wait; 0s only looks.",
)
@options.json_option
@click.pass_obj
def command(session: Session, path: Path, timeout: int, *, as_json: bool) -> int:
    """Wait until every machine of an inventory has reported and is still heard.

    FILE is the JSON of ansible-inventory --list, or has one name a line; - is standard input. A host with an
    agent is heard by its agent, one that is polled over SSH by polling. Those that do not report within the
    timeout are listed, and why, as in collector-cli stale; a machine that no host stands for is told, too.

    At a terminal a line says how far it is.

    \b
    Examples:
      ansible-inventory --list | collector-cli hosts await -
      collector-cli hosts await names.txt --timeout 10m
      collector-cli hosts await all.json --json | jq -r '.hosts[].name'

    Exit codes: 0 all report; 2 at least one does not, after the timeout; 3 the question cannot be answered:
    wrong command line, no database, or no collector listening at the end.
    """
    from collector.cli import hosts_awaited  # takes a while, and a list needs none of it

    return hosts_awaited.await_hosts(session, path, timeout, as_json=as_json)
