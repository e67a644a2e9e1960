"""collector-cli revoke: accept a host's certificates no more."""

from __future__ import annotations

import click

from collector.cli.change import ask, change, yes_option
from collector.cli.find import describe, find_hosts
from collector.cli.output import line
from collector.cli.session import Session
from collector.core.render import count
from collector.store.reading import HostLine
from collector.store.records import revoke
from collector.store.store import Transaction
from fleetpulse.model import State


@click.command("revoke")
@click.argument("names", nargs=-1, required=True, metavar="HOST...")
@yes_option
@click.pass_obj
def command(session: Session, names: tuple[str, ...], *, yes: bool) -> int:
    """Accept the certificates of hosts no more, by whole hostname or UUID, and no token made for them.

    Their streams end within seconds, on every collector, and later ones are refused. What is stored
    of the hosts stays. All of them are revoked, or none. To let a host in again, make a
    new token: collector-cli token create --host HOST, and run on it: fleet-agent enroll --force

    \b
    Examples:
      collector-cli revoke web-17
      collector-cli revoke --yes web-17 web-18

    Exit codes: 0 none of their certificates is accepted; 3 they still are, and the message says why.
    """
    with session.store() as store:
        with store.transaction(write=False) as tx:
            hosts = find_hosts(tx, names)
        if not yes:
            ask(f"Revoke the certificates of {count(len(hosts), 'host')}?", map(describe, hosts))
        revoked = change(store, lambda tx, now: _revoke(tx, hosts, now))
        for host, certificates in zip(hosts, revoked, strict=True):
            name = f"{host.hostname} ({host.host_id})"
            if certificates:
                session.show_line(line(f"revoked {count(certificates, 'certificate')} of {name}"))
            else:
                session.show_line(line(f"{name} has no certificate that is not revoked"))
        if any(revoked):
            session.show_line(
                line(
                    "open streams end within seconds; to let a host in again: collector-cli token create --host HOST, "
                    "and on it fleet-agent enroll --force"
                )
            )
    return State.OK.value


def _revoke(tx: Transaction, hosts: list[HostLine], now: int) -> list[int]:
    return [revoke(tx, host.host, host.hostname, now) for host in hosts]
