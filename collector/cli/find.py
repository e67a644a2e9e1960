"""Which host an admin means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from collector.cli.session import CliError
from collector.core.render import listed
from collector.store import reading
from collector.store.reading import HostLine
from collector.store.store import Transaction

NO_SUCH_HOST = "no such host: not imported, and never enrolled"
"""Why nothing is known of a machine of an inventory."""


def find_host(tx: Transaction, name: str, *, exactly: bool = False) -> HostLine:
    """The one host with this hostname or UUID or, unless `exactly`, whose name starts so.

    Raises CliError if there is none, or more than one.
    """
    found = reading.find_named(tx, name)
    if not found and not exactly:
        found = reading.find_prefixed(tx, name)
    if len(found) == 1:
        return found[0]
    raise ambiguous(name, found) if found else no_such_host(name, exactly=exactly)


def find_hosts(tx: Transaction, names: Sequence[str]) -> list[HostLine]:
    """The hosts with exactly these hostnames or UUIDs, each once, by their numbers. Raises CliError."""
    return _each_once(find_host(tx, name, exactly=True) for name in names)


def find_known(tx: Transaction, names: Sequence[str]) -> list[HostLine]:
    """The same of those names that a host has. Raises CliError for a name that several have."""
    return _each_once(find_host(tx, name, exactly=True) for name in names if reading.find_named(tx, name))


def _each_once(hosts: Iterable[HostLine]) -> list[HostLine]:
    found = {host.host: host for host in hosts}
    return [found[host] for host in sorted(found)]


def describe(host: HostLine) -> str:
    """A host by all that tells it from others."""
    return f"{host.hostname} ({host.host_id}, {host.address or 'no address yet'})"


def ambiguous(name: str, found: Sequence[HostLine]) -> CliError:
    """More than one host may be meant."""
    candidates = listed([f"{host.hostname} ({host.host_id})" for host in found])
    return CliError(f"{name!r} may be any of {len(found)} hosts: {candidates}")


def no_such_host(name: str, *, exactly: bool) -> CliError:
    """No host is meant."""
    hint = "give a whole hostname or UUID" if exactly else "see: collector-cli hosts"
    return CliError(f"no host {name!r}; {hint}")
