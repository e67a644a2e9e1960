"""Why a host is silent: from what a probe over SSH came to, and from who else is silent. Pure."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from collector.core.render import count, duration

MAX_EVIDENCE = 2_000
"""Characters of a diagnosis' evidence that are kept."""


class DiagnosisKind(enum.StrEnum):
    """What is known of a host that does not report. docs/ssh.md explains each."""

    AGENT_DEAD = "agent dead, host up"
    HOST_DEAD = "host dead"
    NETWORK_UNREACHABLE = "network unreachable"
    KEY_REFUSED = "refused our key"
    HOST_KEY_CHANGED = "host key changed"
    FROZEN = "frozen"
    SSH_CLOSED = "host up, ssh closed"
    PROBE_FAILED = "host up, probe failed"
    NOT_PROBED = "not probed"


class Diagnosis(NamedTuple):
    """What is the case, and what shows it."""

    kind: DiagnosisKind
    evidence: str

    @property
    def line(self) -> str:
        """Both in one line."""
        first = self.evidence.partition("\n")[0]
        return f"{self.kind.value}: {first}" if first else self.kind.value


class Neighbour(NamedTuple):
    """Another host, as far as it shows whether the network to it works. Milliseconds.

    `health_at` is when it was heard over SSH last, besides its reports (0: never).
    """

    address: str
    interval: int
    received_at: int
    health_at: int

    @property
    def heard_at(self) -> int:
        """When anything came from it last."""
        return max(self.received_at, self.health_at)

    def is_due(self, now: int, asked_every: int) -> bool:
        """Whether it should have been heard again by now; over SSH it is only as often as it is asked."""
        every = asked_every if self.health_at > self.received_at else self.interval
        return now - self.heard_at > 1.5 * every


def of_probe(agent: str, uptime: float, silent_for: int, *, is_another_boot: bool) -> Diagnosis:
    """The host answered over SSH, so it is its agent that does not speak.

    `agent` is what the probe saw of the agent's unit, `uptime` in seconds (NaN: not known), `silent_for` in
    milliseconds; `is_another_boot`: than that in which the agent was heard last.
    """
    lines = [agent or "nothing could be read of the unit fleetpulse-agent"]
    if uptime * 1000 < silent_for:
        lines.insert(0, f"booted {duration(uptime * 1000)} ago")
    elif is_another_boot:  # a container has the uptime of its machine
        lines.insert(0, "booted since it was heard")
    return Diagnosis(DiagnosisKind.AGENT_DEAD, "; ".join(lines)[:MAX_EVIDENCE])


def of_no_answer(
    address: str, text: str, neighbours: Iterable[Neighbour], missing_since: int, now: int, asked_every: int
) -> Diagnosis:
    """Nothing came back from a host: it is dead, unless nothing comes back from its whole network.

    Nobody can tell a machine that is off from one behind a cut, but for the others behind the same cut: if one of
    its network should have been heard by now, and none was since this one was missed first (`missing_since`), or
    none is any more.
    `asked_every`: the milliseconds between two questions over SSH to a host whose agent is silent.
    """
    network = network_of(address)
    if network is None:
        return Diagnosis(DiagnosisKind.HOST_DEAD, text)
    others = [
        one
        for one in neighbours
        if one.heard_at and one.address != address and network_of(one.address) == network
    ]
    due = [one for one in others if one.is_due(now, asked_every)]
    heard = [one for one in others if one.heard_at > missing_since and one not in due]
    if heard:
        text += f"; {count(len(heard), 'other host')} of {network} {'is' if len(heard) == 1 else 'are'} heard"
    elif due:
        text += f"; neither is any of the {count(len(others), 'other host')} of {network} heard"
        return Diagnosis(DiagnosisKind.NETWORK_UNREACHABLE, text)
    elif others:
        text += f"; no other host of {network} was due to be heard since"
    return Diagnosis(DiagnosisKind.HOST_DEAD, text)


def network_of(address: str) -> str | None:
    """The neighbourhood of an IP address, such as "192.0.2.0/24"; None for what is no address.

    A guess, as nobody tells the collector the masks: /24 and /64 are what people have.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 64), strict=False))
