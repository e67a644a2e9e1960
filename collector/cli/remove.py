"""collector-cli remove: forget hosts that are gone for good."""

from __future__ import annotations

import click

from collector.cli.change import ask, change, yes_option
from collector.cli.find import describe, find_hosts, find_known
from collector.cli.output import line
from collector.cli.session import Session
from collector.cli.ssh_places import tell_of_trusted
from collector.core.render import count
from collector.core.status import Event, EventKind
from collector.store.hosts import remove_host
from collector.store.reading import HostLine
from collector.store.statuses import write_events
from collector.store.store import Transaction
from fleetpulse.model import State


@click.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="HOST...")
@click.option("--if-known", is_flag=True, help="A name that no host has is no error.")
@yes_option
@click.pass_obj
def command(session: Session, names: tuple[str, ...], *, if_known: bool, yes: bool) -> int:
    """Delete hosts, by whole hostname or UUID, and all that is stored of them but their events.

    Their certificates are not accepted any more: an agent that still runs is refused until its
    machine is enrolled again with a new token, by fleet-agent enroll --force. Without TLS it brings
    its host back with its next report: stop it first. All of the hosts are removed, or none.

    \b
    Examples:
      collector-cli remove web-17
      collector-cli remove --if-known --yes web-17 web-18
      collector-cli remove --yes 6ba7b810-9dad-41d1-80b4-00c04fd430c8

    Exit codes: 0 the hosts are gone; 3 they are not, and the message says why.
    """
    with session.store() as store:
        with store.transaction(write=False) as tx:
            hosts = find_known(tx, names) if if_known else find_hosts(tx, names)
        if hosts and not yes:
            ask(f"Remove {count(len(hosts), 'host')}?", map(describe, hosts))
        removed = change(store, lambda tx, now: _remove(tx, hosts, now))
        for host in removed:
            session.show_line(line(f"removed {host.hostname} ({host.host_id})"))
        with store.transaction(write=False) as tx:
            tell_of_trusted(tx, [host.hostname for host in removed])
    return State.OK.value


def _remove(tx: Transaction, hosts: list[HostLine], now: int) -> list[HostLine]:
    removed = [host for host in hosts if remove_host(tx, host.host)]
    write_events(
        tx,
        [(host.host, host.hostname, Event(now, EventKind.REMOVED, old=host.hostname)) for host in removed],
    )
    return removed
