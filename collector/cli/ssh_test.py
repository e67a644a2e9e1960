"""collector-cli ssh test: ask a host over SSH as the collector would, and say how far one gets."""

from __future__ import annotations

import click

from collector.cli import options
from collector.cli.session import Session


@click.command("test", short_help="How far does one get with a host?")
@click.argument("name", metavar="HOST")
@options.json_option
@click.pass_obj
def command(session: Session, name: str, *, as_json: bool) -> int:
    """Ask a host over SSH as the collector would, and say what was found at each stage, or what to do.

    HOST is a whole hostname or UUID, polled or with an agent. Nothing is stored. Run it on the
    collector's machine, with its configuration, as the collector's user: keys are its own.

    \b
    Examples:
      collector-cli ssh test printer-3
      collector-cli ssh test web-17 --json | jq .stages

    Exit codes: 0 the host answers, whatever its checks say; 2 it cannot be asked; 3 wrong usage, no
    such host, or no database.
    """
    from collector.cli.ssh_trial import try_host

    return try_host(session, name, as_json=as_json)
