"""Which host an admin means."""

from __future__ import annotations

from collector.cli.session import CliError
from collector.core.render import listed
from collector.store import reading
from collector.store.reading import HostLine
from collector.store.store import Transaction


def find_host(tx: Transaction, name: str, *, exactly: bool = False) -> HostLine:
    """The one host with this hostname or UUID or, unless `exactly`, whose name starts so.

    Raises CliError if there is none, or more than one.
    """
    found = reading.find_named(tx, name)
    if not found and not exactly:
        found = reading.find_prefixed(tx, name)
    if len(found) == 1:
        return found[0]
    if not found:
        hint = "give a whole hostname or UUID" if exactly else "see: collector-cli hosts"
        raise CliError(f"no host {name!r}; {hint}")
    candidates = listed([f"{host.hostname} ({host.host_id})" for host in found])
    raise CliError(f"{name!r} may be any of {len(found)} hosts: {candidates}")
