"""collector-cli ssh remove: poll a machine no more, or ask a host as any other."""

from __future__ import annotations

import click

from collector.cli.change import ask, change, yes_option
from collector.cli.find import describe, find_hosts
from collector.cli.output import line
from collector.cli.session import CliError, Session
from collector.cli.ssh_places import tell_of_trusted
from collector.cli.ssh_plan import remove_polled
from collector.core.render import count
from collector.store.reading import HostLine
from collector.store.ssh_hosts import forget_ssh_host, load_polled_numbers, load_ssh_hosts, note_change
from collector.store.store import Transaction
from fleetpulse.model import State


@click.command("remove", short_help="Poll a machine no more.")
@click.argument("names", nargs=-1, required=True, metavar="HOST...")
@yes_option
@click.pass_obj
def command(session: Session, names: tuple[str, ...], *, yes: bool) -> int:
    """Forget what is said of hosts, by whole hostname or UUID; polled ones are forgotten altogether.

    A host that is polled is deleted with all that is stored of it but its events, as by
    collector-cli remove. One that has an agent stays, and only its own SSH settings go. Trusted host
    keys stay: see collector-cli ssh trust --forget. All of the hosts, or none.

    \b
    Examples:
      collector-cli ssh remove printer-3
      collector-cli ssh remove --yes printer-3 printer-4

    Exit codes: 0 done; 3 nothing was done, and the message says why.
    """
    with session.store() as store:
        with store.transaction(write=False) as tx:
            hosts, polled = _find(tx, names)
        if not yes:
            going = sum(host.host in polled for host in hosts)
            text = f"Remove {count(going, 'host')}" if going else ""
            if going < len(hosts):
                text += (
                    f"{' and' if text else 'Remove'} the SSH settings of {count(len(hosts) - going, 'host')}"
                )
            ask(f"{text}?", map(describe, hosts))
        removed = change(store, lambda tx, now: _remove(tx, hosts, now))
        for host in hosts:
            what = "removed" if host in removed else "removed the SSH settings of"
            session.show_line(line(f"{what} {host.hostname} ({host.host_id})"))
        with store.transaction(write=False) as tx:
            tell_of_trusted(tx, [host.hostname for host in removed])
    return State.OK.value


def _find(tx: Transaction, names: tuple[str, ...]) -> tuple[list[HostLine], frozenset[int]]:
    hosts = find_hosts(tx, names)
    numbers = [host.host for host in hosts]
    known = {one.host for one in load_ssh_hosts(tx, numbers)}
    unknown = [host.hostname for host in hosts if host.host not in known]
    if unknown:
        raise CliError(
            f"nothing is said of how {', '.join(unknown)} is reached over SSH; to delete a host: collector-cli remove"
        )
    return hosts, load_polled_numbers(tx, numbers)


def _remove(tx: Transaction, hosts: list[HostLine], now: int) -> list[HostLine]:
    """Those that are gone. What is polled is looked up again: an agent may have spoken meanwhile."""
    note_change(tx)
    polled = load_polled_numbers(tx, [host.host for host in hosts])
    removed = remove_polled(tx, [host for host in hosts if host.host in polled], now)
    for host in hosts:
        if host.host not in polled:
            forget_ssh_host(tx, host.host)
    return removed
