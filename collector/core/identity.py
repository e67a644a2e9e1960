"""Who says Hello as a host, and whether it is the one that is known. Pure; times in milliseconds.

Two machines with one identity, such as a cloned image and its original, must not take turns at one record.
Whoever is there stays; who comes from another place waits until it is clear whether the first still lives.
"""

from __future__ import annotations

import enum
import hashlib
from typing import NamedTuple, Protocol

QUARANTINE = 600_000
"""Milliseconds for which a machine in conflict is refused after each try, and after which it is forgotten.

Its tries do not make that last for ever: it ends when the other one has been silent for as long.
"""

LOOK_AGAIN = 60_000
"""Milliseconds after which a newcomer that waits is looked at again at the latest.

A stream that is still open by then has answered a keepalive since the newcomer came, so its peer lives.
"""

_MISSED = 1.5  # intervals without a word after which a host is taken for gone


class TrustedCas(NamedTuple):
    """Whom hosts are to trust: the bundle as PEM, its SHA-256, and the fingerprint of the CA that signs.

    `issuer` is empty where there is no key to sign with.
    """

    bundle: bytes
    trust_id: bytes
    issuer: bytes


class Bearer(NamedTuple):
    """A host that speaks with a certificate: its number here, UUID, record's name, and that fingerprint."""

    host: int
    host_id: str
    name: str
    fingerprint: bytes


class RenewalRefused(Exception):
    """A host gets no new certificate now; the text says why."""


class Place(NamedTuple):
    """What tells one machine, and one run of its agent, from others. An empty part is not known."""

    machine_id: str
    hardware_id: str
    boot_id: str
    address: str
    instance: str

    def __str__(self) -> str:
        known = [
            f"{name} {part[:16]}" for name, part in (("hardware", self[1]), ("machine", self[0])) if part
        ]
        return f"{self.address} ({', '.join(known)})" if known else self.address


class Contest(NamedTuple):
    """A newcomer waits: since when, and when the one that is known had been heard last by then."""

    since: int
    heard_at: int


class Incumbent(NamedTuple):
    """The one that is known, as it is when a newcomer says Hello.

    `heard_at` is when it reported last, or said Hello to this collector if that was later (0: never).
    `listening_since` is since when collectors have been listening without a gap: before that, its silence says
    nothing. `open_since` is when its stream to this collector began (0: it has none), `is_elsewhere` says
    that it was welcomed last by another collector, which lives.
    """

    place: Place
    interval: int
    ttl: int
    heard_at: int
    listening_since: int = 0
    open_since: int = 0
    is_elsewhere: bool = False

    @property
    def patience(self) -> int:
        """How long it is silent on an open stream before it counts as gone."""
        return int(_MISSED * self.interval)

    @property
    def gone_at(self) -> int:
        """When it counts as gone unless it is heard again on the stream that it has."""
        return self.heard_at + self.patience

    @property
    def silent_since(self) -> int:
        """Since when it could have been heard and was not."""
        return max(self.heard_at, self.listening_since)

    def lives_until(self, newcomer: Place) -> int:
        """Until when it may yet be heard again.

        Without a stream its agent is not there, as far as a newcomer of the same machine is concerned. Another
        machine may just have been quicker, after a restart of the collector or a cut of the network. It waits
        until the agent of the known one should have come back, and gets in before silence is announced.
        """
        streaming = self.gone_at if self.open_since or self.is_elsewhere else 0
        if not self.heard_at or not _is_another_machine(newcomer, self.place):
            return streaming
        return max(streaming, self.silent_since + min(self.ttl, self.ttl // 2 + self.interval))


class Verdict(enum.Enum):
    """What becomes of a Hello."""

    ADMIT = enum.auto()
    HOLD = enum.auto()
    CONFLICT = enum.auto()
    """The one that is known lives. The newcomer is refused, and from now on in quarantine."""
    QUARANTINED = enum.auto()
    """The newcomer was refused a while ago, and is again."""


class Judgement(NamedTuple):
    """A verdict; for HOLD, in how many milliseconds to look again, and what to compare with then."""

    verdict: Verdict
    wait: int = 0
    contest: Contest | None = None


class Placed(Protocol):
    """Whatever tells where a Hello came from, such as a `HostRecord`."""

    @property
    def machine_id(self) -> str: ...  # noqa: D102
    @property
    def hardware_id(self) -> str: ...  # noqa: D102
    @property
    def boot_id(self) -> str: ...  # noqa: D102
    @property
    def address(self) -> str: ...  # noqa: D102
    @property
    def instance(self) -> str: ...  # noqa: D102


def place_of(record: Placed) -> Place:
    """Where a Hello came from."""
    return Place(record.machine_id, record.hardware_id, record.boot_id, record.address, record.instance)


def same_place(newcomer: Place, known: Place) -> bool:
    """Whether it is the same run of the same agent, as far as that is known.

    Who says less of itself than is known is another: else a copy would only have to keep silent.
    """
    return all(said == stored or not stored for said, stored in zip(newcomer, known, strict=True))


def place_hash(newcomer: Place, known: Place) -> bytes:
    """16 bytes by which a machine in conflict is known again.

    A restart does not make another machine of it, unless nothing else tells it from the one that is known.
    """
    parts = [*_machine(newcomer), newcomer.instance if _machine(newcomer) == _machine(known) else ""]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def released_after(ttl: int) -> int:
    """After how much silence of a host with that time-to-live those are let in whom it had refused."""
    return max(QUARANTINE, ttl)


def judge(
    newcomer: Place,
    incumbent: Incumbent,
    now: int,
    contest: Contest | None = None,
    tried_at: int | None = None,
) -> Judgement:
    """What becomes of a Hello.

    `contest` is that of an earlier HOLD of the same Hello, `tried_at` when this machine was refused last
    (None: not lately).
    """
    if same_place(newcomer, incumbent.place):
        return Judgement(Verdict.ADMIT)
    until = incumbent.lives_until(newcomer)
    if tried_at is not None and now - tried_at < QUARANTINE:
        is_released = now - incumbent.silent_since >= released_after(incumbent.ttl)
        if not is_released and (now < until or _ids(newcomer) != _ids(incumbent.place)):
            return Judgement(Verdict.QUARANTINED)
    if now >= until:
        return Judgement(Verdict.ADMIT)
    if contest is None:
        contest = Contest(now, incumbent.heard_at)
    elif incumbent.heard_at > contest.heard_at or _has_outlasted(incumbent, contest, now):
        return Judgement(Verdict.CONFLICT)
    elif _machine(newcomer) == _machine(incumbent.place) and now - contest.since >= LOOK_AGAIN:
        return Judgement(Verdict.ADMIT)  # its agent was started anew, and came to another collector
    # One that lives is noticed when its next report is due, long before it would be given up.
    due = incumbent.gone_at - now if now < incumbent.gone_at else incumbent.patience
    return Judgement(Verdict.HOLD, max(1, min(until - now, due, LOOK_AGAIN)), contest)


def _has_outlasted(incumbent: Incumbent, contest: Contest, now: int) -> bool:
    """Whether its stream is one that was open all the time that the newcomer waited, and that was long."""
    return 0 < incumbent.open_since <= contest.since and now - contest.since >= LOOK_AGAIN


def _is_another_machine(newcomer: Place, known: Place) -> bool:
    """Whether it certainly is, or has neither the address nor the run of the agent in common with it."""
    pairs = zip(_ids(newcomer), _ids(known), strict=True)
    if any(said and stored and said != stored for said, stored in pairs):
        return True
    stored_all = bool(known.address and known.instance)
    return stored_all and newcomer.address != known.address and newcomer.instance != known.instance


def _ids(place: Place) -> tuple[str, str]:
    return place.machine_id, place.hardware_id


def _machine(place: Place) -> tuple[str, str, str]:
    return *_ids(place), place.address
