"""collector-cli remove: forget hosts that are gone for good."""

from __future__ import annotations

import sys

import click

from collector.cli.find import find_host
from collector.cli.output import line
from collector.cli.session import CliError, Session
from collector.core.render import count, escape
from collector.core.status import Event, EventKind
from collector.store.collectors import load_listening
from collector.store.errors import StoreConflict
from collector.store.hosts import remove_host
from collector.store.reading import HostLine
from collector.store.statuses import write_events
from collector.store.store import Store
from fleetpulse.model import State

_TRIES = 5  # a collector that writes the same host at that moment wins once, not for ever


@click.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="HOST...")
@click.option("--yes", is_flag=True, help="Do not ask. Needed when nobody is at a terminal to be asked.")
@click.pass_obj
def command(session: Session, names: tuple[str, ...], *, yes: bool) -> int:
    """Delete hosts, by whole hostname or UUID, and all that is stored of them but their events.

    An agent that still runs on such a host brings it back with its next report: stop it first. All
    of the hosts are removed, or none.

    \b
    Examples:
      collector-cli remove web-17
      collector-cli remove --yes 6ba7b810-9dad-41d1-80b4-00c04fd430c8

    Exit codes: 0 the hosts are gone; 3 they are not, and the message says why.
    """
    with session.store() as store:
        with store.transaction(write=False) as tx:
            found = {host.host: host for host in (find_host(tx, name, exactly=True) for name in names)}
        hosts = list(found.values())
        if not yes:
            _ask(hosts)
        for host in _remove(store, hosts):
            session.show_line(line(f"removed {host.hostname} ({host.host_id})"))
    return State.OK.value


def _ask(hosts: list[HostLine]) -> None:
    if not sys.stdin.isatty():
        raise CliError("nobody at a terminal to be asked; add --yes")
    for host in hosts:
        click.echo(f"  {escape(host.hostname)} ({host.host_id}, {escape(host.address)})", err=True)
    click.confirm(f"Remove {count(len(hosts), 'host')}?", abort=True, err=True)


def _remove(store: Store, hosts: list[HostLine]) -> list[HostLine]:
    for attempt in range(1, _TRIES + 1):
        try:
            with store.transaction() as tx:
                now = load_listening(tx).now
                removed = [host for host in sorted(hosts) if remove_host(tx, host.host)]
                write_events(
                    tx,
                    [
                        (host.host, host.hostname, Event(now, EventKind.REMOVED, old=host.hostname))
                        for host in removed
                    ],
                )
        except StoreConflict:
            if attempt == _TRIES:
                raise
        else:
            return removed
    return []
