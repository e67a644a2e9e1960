"""collector-cli rebind: let a re-imaged machine go on with the history of its old record."""

from __future__ import annotations

import click

from collector.cli.change import ask, change, yes_option
from collector.cli.find import ambiguous, describe, no_such_host
from collector.cli.output import line
from collector.cli.session import CliError, Session
from collector.core.render import duration
from collector.store import reading
from collector.store.collectors import load_listening
from collector.store.reading import HostLine
from collector.store.records import rebind
from collector.store.store import Transaction
from fleetpulse.model import State


@click.command("rebind")
@click.argument("old_name", metavar="OLD")
@click.argument("new_name", metavar="NEW")
@yes_option
@click.option("--force", is_flag=True, help="Although OLD is alive: its agent is refused from then on.")
@click.pass_obj
def command(session: Session, old_name: str, new_name: str, *, yes: bool, force: bool) -> int:
    """Let the machine that is known as NEW go on as OLD, with its name, groups, history and events.

    For a machine that was installed anew and came back under another identity. OLD and NEW are whole
    hostnames or UUIDs; where two hosts have the same name, OLD is the silent one and NEW the one that
    reports. The record NEW ends, its events become those of OLD; no report is lost. Certificates and
    tokens of OLD are no longer accepted.

    \b
    Examples:
      collector-cli rebind web-17 web-17
      collector-cli rebind db-1 localhost
      collector-cli rebind --yes 6ba7b810-9dad-41d1-80b4-00c04fd430c8 9f1c2a4e-0b5d-4c57-9c2e-5a1f0d3b7e66

    Exit codes: 0 the machine goes on as OLD; 3 it does not, and the message says why.
    """
    with session.store() as store:
        with store.transaction(write=False) as tx:
            now = load_listening(tx).now
            old = _find(tx, old_name, now, alive=False)
            new = _find(tx, new_name, now, alive=True)
        if old.host == new.host:
            raise CliError(f"OLD and NEW are the same host: {describe(old)}")
        if not yes:
            _ask(old, new, now)

        def bind(tx: Transaction, now: int) -> None:
            found = reading.load_lines(
                tx, [old.host]
            )  # it may have come back while somebody thought about it
            if old.host in found and _is_alive(found[old.host], now) and not force:
                raise CliError(
                    f"{describe(found[old.host])} is alive, heard {_heard(found[old.host], now)}: are OLD and NEW "
                    "the right way round? If so, stop its agent, or add --force"
                )
            rebind(tx, old.host, new.host, now)

        change(store, bind)
    session.show_line(
        line(f"{old.hostname} is now the machine {new.host_id}; its old identity {old.host_id} is gone")
    )
    return State.OK.value


def _find(tx: Transaction, name: str, now: int, *, alive: bool) -> HostLine:
    found = reading.find_named(tx, name)
    if not found:
        raise no_such_host(name, exactly=True)
    if len(found) == 1:
        return found[0]
    matching = [host for host in found if _is_alive(host, now) is alive]
    if len(matching) == 1:
        return matching[0]
    raise ambiguous(name, found)


def _is_alive(host: HostLine, now: int) -> bool:
    return bool(host.received_at) and now - host.received_at <= host.ttl


def _heard(host: HostLine, now: int) -> str:
    return f"{duration(now - host.received_at)} ago" if host.received_at else "never"


def _ask(old: HostLine, new: HostLine, now: int) -> None:
    ask(
        f"Let this machine go on as {old.hostname}?",
        (
            f"record   {describe(old)}, heard {_heard(old, now)}",
            f"machine  {describe(new)}, heard {_heard(new, now)}",
        ),
    )
