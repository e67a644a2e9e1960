"""Which hosts are to be connected to, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from collector.cli.find import ambiguous
from collector.cli.session import CliError
from collector.config import Ssh
from collector.core.ssh_settings import SettingsError, SshSettings, check
from collector.ssh.target import Hop, Resolver, Target, parse_jump
from collector.store.reading import HostLine, find_named, load_groups, load_hosts
from collector.store.ssh_hosts import SshHost, load_group_settings, load_polled_numbers, load_ssh_hosts
from collector.store.store import Transaction


def find_targets(tx: Transaction, names: Sequence[str], site: Ssh) -> list[Target]:
    """The hosts with exactly these hostnames or UUIDs, or jump hosts on the way to hosts; each once.

    A jump host is [USER@]HOST[:PORT]; without PORT it is all that are called so. Raises CliError, ConfigError.
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
    return targets_of(tx, list(lines.values()), site) + _hop_targets(tx, list(hops), Resolver(site))


def targets_of(tx: Transaction, lines: Sequence[HostLine], site: Ssh) -> list[Target]:
    """How these hosts are reached, by name. Raises CliError, ConfigError."""
    if not lines:
        return []
    resolver, of_groups = Resolver(site), load_group_settings(tx)
    return [resolver.target(one, of_groups) for one in ssh_hosts_of(tx, lines)]


def is_shared(tx: Transaction, target: Target, site: Ssh) -> bool:
    """Whether another host, or a jump host, is reached at the same address and port. Raises ConfigError."""
    resolver = Resolver(site)
    place = target.address, target.port
    others = [one for one in _all_targets(tx, resolver) if one.host and one.host != target.host]
    if any((one.address, one.port) == place for one in others):
        return True
    if any((hop.address, hop.port) == place and hop.name != target.name for hop in _all_hops(tx, resolver)):
        return True
    known = {one.host for one in others}
    return any(
        line.address == target.address
        for line in load_hosts(tx)
        if line.host not in known and line.host != target.host
    )


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
    known: dict[tuple[str, int], Target] = {}
    for hop in _all_hops(tx, resolver):
        known.setdefault((hop.name, hop.port), hop)
    found: dict[tuple[str, int], Target] = {}
    unknown = []
    for name in names:
        meant = _as_hop(name)
        matching = {place: hop for place, hop in known.items() if meant and _is_meant(place, meant)}
        if not matching:
            unknown.append(name)
        found |= matching
    if unknown:
        raise CliError(
            f"no host {', '.join(unknown)}, and no jump host on the way to one; see: collector-cli ssh list"
        )
    return list(found.values())


def _as_hop(name: str) -> Hop | None:
    """What is meant by [USER@]HOST[:PORT]; None for what is none."""
    if ":" in name and not name.endswith("]") and name.count(":") > 1 and "]:" not in name:
        return Hop("", name, 0)  # an address of IPv6
    try:
        check(SshSettings(jump=name))
    except SettingsError:
        return None
    [hop] = parse_jump(name)[:1]
    return hop


def _is_meant(place: tuple[str, int], meant: Hop) -> bool:
    return place[0] == meant.host and meant.port in (0, place[1])


def _all_hops(tx: Transaction, resolver: Resolver) -> Iterator[Target]:
    for target in _all_targets(tx, resolver):
        for place, hop in enumerate(target.jump):
            yield _as_target(target, place, resolver.hop(hop, target.user))


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
