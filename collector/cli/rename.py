"""collector-cli rename: call a host something else than it calls itself."""

from __future__ import annotations

import click

from collector.cli.change import change
from collector.cli.find import describe, find_host
from collector.cli.output import line
from collector.cli.session import CliError, Session
from collector.store import reading
from collector.store.reading import HostLine
from collector.store.records import rename_host
from collector.store.store import Transaction
from fleetpulse.model import State

_LONGEST = 255  # characters, as for a hostname


@click.command("rename")
@click.argument("name", metavar="HOST")
@click.argument("new_name", metavar="NEW")
@click.option("--force", is_flag=True, help="Although another host is called NEW.")
@click.pass_obj
def command(session: Session, name: str, new_name: str, *, force: bool) -> int:
    """Call a host NEW, whatever the machine calls itself. HOST is a whole hostname or UUID.

    Its identity, certificate and history stay as they are, and what the machine calls itself is
    shown beside. Renaming it to that ends this. Two hosts of one name can be told apart by their
    UUIDs only, so a name that another host has is refused.

    \b
    Examples:
      collector-cli rename localhost kiosk-3
      collector-cli rename 6ba7b810-9dad-41d1-80b4-00c04fd430c8 web-17

    Exit codes: 0 the host is called NEW; 3 it is not, and the message says why.
    """
    _check(new_name)
    with session.store() as store:

        def rename(tx: Transaction, now: int) -> tuple[HostLine, str]:
            host = find_host(tx, name, exactly=True)
            others = [other for other in reading.find_named(tx, new_name) if other.host != host.host]
            if others and not force:
                raise CliError(
                    f"another host is called {new_name!r}: {describe(others[0])}; add --force if that is meant"
                )
            return host, rename_host(tx, host.host, new_name, now)

        host, before = change(store, rename)
    if before == new_name:
        session.show_line(line(f"{before} ({host.host_id}) is called so already"))
    else:
        session.show_line(line(f"renamed {before} to {new_name} ({host.host_id})"))
    return State.OK.value


def _check(name: str) -> None:
    problem = ""
    if not name.strip():
        problem = "is empty"
    elif not name.isprintable() or name != name.strip():
        problem = "has control characters, or spaces at an end"
    elif len(name) > _LONGEST:
        problem = f"is longer than {_LONGEST} characters"
    if problem:
        raise CliError(f"the new name {name!r} {problem}")
