"""Which hosts are to be connected to, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from collector.cli.find import ambiguous
from collector.cli.session import CliError
from collector.config import Ssh
from collector.core.ssh_settings import SshSettings
from collector.ssh.target import Hop, Resolver, Target
from collector.store.reading import HostLine, find_named, load_groups
from collector.store.ssh_hosts import SshHost, load_group_settings, load_polled_numbers, load_ssh_hosts
from collector.store.store import Transaction


def find_targets(tx: Transaction, names: Sequence[str], site: Ssh) -> list[Target]:
    """The hosts with exactly these hostnames or UUIDs, or jump hosts on the way to hosts; each once.

    Raises CliError, ConfigError.
    """
    lines: dict[int, HostLine] = {}
    hops: dict[str, None] = {}
    for name in dict.fromkeys(names):
        found = find_named(tx, name)
        if len(found) > 1:
            raise ambiguous(name, found)
        if found:
            lines[found[0].host] = found[0]
        else:
            hops[name] = None
    resolver = Resolver(site)
    of_groups = load_group_settings(tx)
    targets = [resolver.target(one, of_groups) for one in ssh_hosts_of(tx, list(lines.values()))]
    return targets + _hop_targets(tx, list(hops), resolver)


def ssh_hosts_of(tx: Transaction, lines: Sequence[HostLine]) -> list[SshHost]:
    """These hosts, also those of which nobody said how they are reached, by name. Raises CliError."""
    numbers = [host.host for host in lines]
    stored = {one.host: one for one in load_ssh_hosts(tx, numbers)}
    for one in stored.values():
        if one.problem:
            raise CliError(f"{one.name}: {one.problem}; say it anew: collector-cli ssh add {one.name}")
    polled, groups = load_polled_numbers(tx, numbers), load_groups(tx, numbers)
    others = [
        SshHost(
            host.host,
            host.host_id,
            host.hostname,
            host.address,
            host.interval,
            host.ttl,
            host.host in polled,
            SshSettings(),
            groups.get(host.host, ()),
            host.received_at,
        )
        for host in lines
        if host.host not in stored
    ]
    return sorted([*stored.values(), *others], key=lambda one: (one.name, one.host_id))


def _hop_targets(tx: Transaction, names: Sequence[str], resolver: Resolver) -> list[Target]:
    if not names:
        return []
    known: dict[str, Target] = {}
    for target in _all_targets(tx, resolver):
        for place, hop in enumerate(target.jump):
            known.setdefault(hop.host, _as_target(target, place, resolver.hop(hop, target.user)))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CliError(
            f"no host {', '.join(unknown)}, and no jump host on the way to one; see: collector-cli ssh list"
        )
    return [known[name] for name in names]


def _all_targets(tx: Transaction, resolver: Resolver) -> Iterator[Target]:
    """Everything that has settings: hosts, groups, the site."""
    of_groups = load_group_settings(tx)
    for host in load_ssh_hosts(tx):
        yield resolver.target(host, of_groups)
    for settings in (*of_groups.values(), SshSettings()):
        yield resolver.target(SshHost(0, "", "", "", 0, 0, True, settings, ()), {})


def _as_target(target: Target, place: int, hop: Hop) -> Target:
    """A jump host as what one connects to: in the way in which the target is reached, over those before it."""
    return replace(
        target,
        host=0,
        host_id="",
        name=target.jump[place].host,
        address=hop.host,
        port=hop.port,
        user=hop.user,
        jump=target.jump[:place],
        options={name: value for name, value in target.options.items() if name != "HostKeyAlias"},
    )
