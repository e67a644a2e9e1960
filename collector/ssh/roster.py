"""Whom this poller has to ask, kept in step with the database. No I/O: `Look` in, due times and goodbyes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from collector.core.diagnosis import Diagnosis
from collector.ssh.look import Look, Policy
from collector.ssh.polled import PolledHost
from collector.ssh.silent import SilentAgent, not_probed, why_not
from collector.ssh.target import Resolver, Target
from collector.store.ssh_hosts import SilentHost, SshHost
from fleetpulse.config import ConfigError
from fleetpulse.model import Layout

_FIRST_TURNS = 5.0  # seconds over which hosts are spread that are all due at once

Asked = PolledHost | SilentAgent


@dataclass(slots=True)
class Moves:
    """What follows from a look: hosts and in how many seconds they are due, hosts to leave, and what is known unasked."""

    due: dict[int, float] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    findings: list[tuple[SshHost, Diagnosis]] = field(default_factory=list)


class Roster:
    """The hosts that are polled, and those whose agent is silent. `collector` is what this one is called."""

    def __init__(self, resolver: Resolver, collector: str, *, has_credentials: bool):
        self._resolver = resolver
        self._collector = collector
        self._has_credentials = has_credentials
        self._polled: dict[int, PolledHost] = {}
        self._silent: dict[int, SilentAgent] = {}
        self._untold: dict[int, tuple[int, str]] = {}  # hosts that are not asked: since when, and why

    def get(self, host: int) -> Asked | None:
        """Who is to be asked under that number."""
        return self._polled.get(host) or self._silent.get(host)

    def newcomers(self, found: Look, policy: Policy) -> list[int]:
        """The polled hosts whose last layout `take_polled` wants to know."""
        return [one.host for one in policy.polled if found.is_mine(one.host) and one.host not in self._polled]

    def names(self, found: Look, policy: Policy) -> set[str]:
        """What the hosts are called whose settings are wanted."""
        polled = {one.name for one in policy.polled if found.is_mine(one.host)}
        return polled | {one.ssh.name for one in found.silent}

    def leave_others(self, found: Look) -> Moves:
        """Leave the hosts that are no longer ours, at once: somebody else asks them soon."""
        moves = Moves()
        for hosts in (self._polled, self._silent):
            for host in [host for host in hosts if not found.is_mine(host)]:
                del hosts[host]
                moves.left.append(host)
        return moves

    def take_polled(
        self,
        found: Look,
        policy: Policy,
        layouts: Mapping[int, Layout],
        heard: Mapping[int, int],
        now: int,
    ) -> Moves:
        """Poll what is ours now, and leave what is not.

        `layouts` are the last ones of newcomers, `heard` is when those were heard last; like `now` in
        milliseconds.
        """
        moves = Moves()
        mine = {one.host: one for one in policy.polled if found.is_mine(one.host)}
        targets: dict[int, Target] = {}
        for host, one in mine.items():
            why = one.problem
            try:
                targets[host] = self._resolver.target(one, policy.groups)
            except ConfigError as error:
                why = why or str(error)
            if self._is_unusable(one, why, moves):
                targets.pop(host, None)
        for host in self._polled.keys() - targets.keys():
            del self._polled[host]
            moves.left.append(host)
        for turn, (host, target) in enumerate(targets.items()):
            known, one = self._polled.get(host), mine[host]
            if known is None:
                if self._silent.pop(host, None):
                    moves.left.append(host)  # it was asked as a silent one until now
                # The policy may be a minute old, and another collector may have heard it since.
                heard_at = heard.get(host, one.received_at)
                self._polled[host] = PolledHost(target, heard_at, self._collector, layouts.get(host))
                moves.due[host] = _first_turn(target, heard_at, turn / len(targets), now)
            elif known.target != target:
                known.target = target
                moves.due[host] = 0.0
        return moves

    def take_silent(self, found: Look, policy: Policy) -> Moves:
        """Ask hosts that have fallen silent, and leave those that are heard again."""
        moves = Moves()
        silent = {one.ssh.host: one for one in found.silent if one.ssh.host not in self._polled}
        for host, known in list(self._silent.items()):
            if host not in silent or silent[host].ssh.received_at != known.heard_at:
                del self._silent[host]
                moves.left.append(host)
        for host in self._untold.keys() - silent.keys() - self._polled.keys():
            del self._untold[host]
        for one in silent.values():
            self._consider(one, policy, moves)
        return moves

    def _consider(self, silent: SilentHost, policy: Policy, moves: Moves) -> None:
        one = silent.ssh
        target: Target | None = None
        try:
            effective = self._resolver.settings(one, policy.groups)
            why = why_not(silent, effective, has_credentials=self._has_credentials)
            target = self._resolver.target(one, policy.groups)
        except ConfigError as error:
            why = str(error)
        if self._is_unusable(one, why, moves) or target is None:
            if self._silent.pop(one.host, None):
                moves.left.append(one.host)
            return
        known = self._silent.get(one.host)
        if known is None:
            self._silent[one.host] = SilentAgent(target, one.received_at, one.interval, silent.boot_id)
            moves.due[one.host] = 0.0
        else:
            known.target = target

    def _is_unusable(self, one: SshHost, why: str, moves: Moves) -> bool:
        """Whether there is a reason not to ask a host, which is told once."""
        if not why:
            self._untold.pop(one.host, None)
            return False
        if self._untold.get(one.host) != (one.received_at, why):
            self._untold[one.host] = one.received_at, why
            moves.findings.append((one, not_probed(why)))
        return True


def _first_turn(target: Target, heard_at: int, share: float, now: int) -> float:
    """In how many seconds a host is due that is new here: an interval after it was heard last, wherever that was.

    `share` is its place among all, from 0 to 1, so that not all are due at once.
    """
    waited = (now - heard_at) / 1000 if heard_at else target.interval
    return max(min(_FIRST_TURNS, target.interval) * share, target.interval - waited)
