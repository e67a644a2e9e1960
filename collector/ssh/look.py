"""What a poller reads of the database each few seconds: its share of the fleet, who is silent, whom to trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.core.diagnosis import DiagnosisKind, of_no_answer
from collector.core.ssh_settings import SshSettings
from collector.store import diagnoses
from collector.store.collectors import Listening, load_listening_since
from collector.store.diagnoses import Finding
from collector.store.ssh_hosts import (
    SilentHost,
    SshHost,
    load_group_settings,
    load_polled,
    load_silent_agents,
    load_version,
)
from collector.store.ssh_known_hosts import load_known_hosts
from collector.store.ssh_shares import Poller, share_of, take_shares
from collector.store.store import Transaction

_NEVER_SEEN = 120_000  # milliseconds after which a host that was never heard counts as silent


@dataclass(frozen=True, slots=True)
class Policy:
    """What admins have said: of hosts that are polled, of groups, and which keys are trusted."""

    version: str
    polled: Sequence[SshHost]
    groups: Mapping[str, SshSettings]
    known_hosts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Look:
    """What is the case. `policy` is None if it is still the one that is known."""

    shares: frozenset[int]
    policy: Policy | None
    silent: Sequence[SilentHost]

    def is_mine(self, host: int) -> bool:
        """Whether this poller is the one that asks the host."""
        return share_of(host) in self.shares


def look(tx: Transaction, me: Poller, shares: frozenset[int] | None, version: str | None, now: int) -> Look:
    """Prolong the leases unless `shares` are those still held, and read what has changed since `version`."""
    if shares is None:
        shares = take_shares(tx, me, now)
    current = load_version(tx)
    policy = None
    if current != version:
        policy = Policy(current, load_polled(tx), load_group_settings(tx), load_known_hosts(tx))
    silent = load_silent_agents(tx, Listening(now, load_listening_since(tx, now)), now - _NEVER_SEEN)
    diagnoses.forget_diagnoses(tx, diagnoses.load_outdated(tx))
    mine = [one for one in silent if share_of(one.ssh.host) in shares]
    return Look(shares, policy, mine)


class Found(NamedTuple):
    """A finding, the address that was asked, and since when the host has been missed, in milliseconds."""

    finding: Finding
    address: str
    missing_since: int = 0


def note_findings(tx: Transaction, found: Sequence[Found], now: int, asked_every: int) -> None:
    """Store what was found out; see `of_no_answer`.

    Whether a host is dead or out of reach is told by its neighbours.
    """
    unheard = [one for one in found if one.finding.diagnosis.kind is DiagnosisKind.HOST_DEAD]
    neighbours = diagnoses.load_neighbours(tx, [one.address for one in unheard]) if unheard else []
    judged = {
        one: one.finding._replace(
            diagnosis=of_no_answer(
                one.address, one.finding.diagnosis.evidence, neighbours, one.missing_since, now, asked_every
            )
        )
        for one in unheard
    }
    diagnoses.save_findings(tx, [judged.get(one, one.finding) for one in found], now)
