"""Where hosts are that are reached over SSH, in the words of ssh."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from collector.cli.known_hosts import parse_line
from collector.cli.session import CliError, complain
from collector.cli.ssh_targets import targets_of
from collector.config import Ssh
from collector.ssh.target import Hop, Resolver, Target
from collector.store.reading import HostLine
from collector.store.ssh_hosts import SshHost, load_group_settings, load_polled_numbers, load_ssh_hosts
from collector.store.ssh_known_hosts import load_known_hosts
from collector.store.ssh_shares import load_holders, share_of
from collector.store.store import Transaction
from fleetpulse.config import ConfigError


def endpoint(address: str, port: int) -> str:
    """Address and port: "192.0.2.7:22", "[2001:db8::7]:22"."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def way(target: Target) -> str:
    """All of how a host is reached: "monitor@192.0.2.7:22 through gate, inner"."""
    via = f" through {', '.join(map(hop_name, target.jump))}" if target.jump else ""
    return f"{target.user}@{endpoint(target.address, target.port)}{via}"


def hop_name(hop: Hop) -> str:
    """A jump host as ssh -J takes it."""
    user = f"{hop.user}@" if hop.user else ""
    host = f"[{hop.host}]" if ":" in hop.host else hop.host
    return f"{user}{host}:{hop.port}" if hop.port not in (0, 22) else f"{user}{host}"


class Reached(NamedTuple):
    """How a host is reached, and by which collector; `problem` is why it is not."""

    target: Target | None
    mode: str
    collector: str
    problem: str = ""

    @property
    def is_polled(self) -> bool:
        """Whether it has no agent, and is asked for its reports."""
        return self.mode == "polled"

    def rows(self) -> list[tuple[str, str]]:
        """What is shown of it, under names."""
        how = way(self.target) if self.target else self.problem
        return [
            ("reached" if self.is_polled else "over SSH", how),
            ("collector", self.collector if self.is_polled else ""),
        ]

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        target = self.target
        return {
            "mode": self.mode,
            "address": target.address if target else None,
            "port": target.port if target else None,
            "user": target.user if target else None,
            "jump": [hop_name(hop) for hop in target.jump] if target else [],
            "collector": self.collector or None,
            "problem": self.problem or None,
        }


def reached(tx: Transaction, host: HostLine, site: Ssh) -> Reached | None:
    """How one host is reached; None if nobody said that it is."""
    stored = load_ssh_hosts(tx, [host.host])
    if not stored:
        return None
    [one] = stored
    collector = load_holders(tx).get(share_of(host.host), "")
    target, problem = None, one.problem
    if not problem:
        try:
            target = Resolver(site).target(one, load_group_settings(tx))
        except ConfigError as error:
            problem = str(error)
    return Reached(target, mode_of(one), collector, problem)


def mode_of(host: SshHost) -> str:
    """What SSH is for: its reports, or to find out why its agent is silent, if that."""
    if host.is_polled:
        return "polled"
    return "never" if host.settings.fallback is False else "fallback"


def with_addresses(tx: Transaction, hosts: Iterable[HostLine], site: Ssh) -> list[HostLine]:
    """The hosts; those that are polled and never answered with the address at which they are asked.

    What cannot be put together is left out: collector-cli doctor tells why.
    """
    found = list(hosts)
    unheard = [host for host in found if not host.address]
    polled = load_polled_numbers(tx, [host.host for host in unheard]) if unheard else frozenset()
    if not polled:
        return found
    try:
        targets = targets_of(tx, [host for host in unheard if host.host in polled], site)
    except (CliError, ConfigError):
        return found
    addresses = {target.host: target.address for target in targets}
    return [host._replace(address=addresses.get(host.host, host.address)) for host in found]


def tell_of_trusted(tx: Transaction, names: Iterable[str]) -> None:
    """Say which of the hosts that are gone have keys that are trusted as before."""
    lines = [known for text in load_known_hosts(tx) if (known := parse_line(text)) is not None]
    left = [name for name in names if any(not known.marker and known.names_host([name]) for known in lines)]
    if left:
        forget = " ".join(f"--forget {name}" for name in left)
        complain(f"trusted keys stay; to trust them no more: collector-cli ssh trust {forget}")
