"""What waits in a writer's inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.core.identity import Contest
from collector.core.status import HostRecord
from collector.store.certificates import CertificateRow
from fleetpulse.model import Facts, Report

ENROL_AGAIN = (
    "enrol it again with a new token (collector-cli token create --host NAME, fleet-agent enroll --force)"
)
"""What the admin of a machine is told whose certificate is not accepted any more."""


class Registered(NamedTuple):
    """A host whose rows exist, what it is called, and the last committed sequence number of its epoch (0: none).

    `certificate` is the one with which it speaks; None without TLS.
    """

    host: int
    committed_seq: int
    name: str
    certificate: CertificateRow | None = None


class Held(NamedTuple):
    """Another machine with this identity may live: the same Hello again in `wait` milliseconds tells more."""

    wait: int
    contest: Contest


class HelloRefused(Exception):
    """Who says Hello may not speak as this host; the text says why. `kind` is a name in `COUNTED`.

    `host` is what the host is called here, or what it calls itself if it is not known.
    """

    def __init__(self, kind: str, text: str, host: str):
        super().__init__(text)
        self.kind = kind
        self.host = host


@dataclass(slots=True, eq=False)
class Registration:
    """A Hello: make the host's rows, note what changed. Answered by `Registered`, `Held` or `HelloRefused`.

    `fingerprint` is that of the certificate with which it came (None: without TLS). `open_since` says since
    when the host has a stream here, in milliseconds (0: it has none). `contest` is that of a `Held` before.
    """

    record: HostRecord
    epoch: int
    received_at: int
    done: asyncio.Future[Registered | Held]
    fingerprint: bytes | None = None
    open_since: int = 0
    contest: Contest | None = None
    is_polled: bool = False
    """Nobody says Hello: this collector polls a host without an agent, at the address that it was told."""
    weight = 1

    @property
    def is_abandoned(self) -> bool:
        """Whether its stream has ended: the host may have said another Hello since, and that one counts."""
        return self.done.cancelled()


@dataclass(slots=True, eq=False)
class Submission:
    """Reports, or facts, of one host. Answered by the high-water mark after the commit.

    `hostname` and `instance` are what the host was called, and which run of its agent this is, at its Hello.
    """

    host: int
    hostname: str
    instance: str
    epoch: int
    reports: Sequence[Report]
    facts: Facts | None
    received_at: int
    done: asyncio.Future[int]
    weight: int = 1
    """How much of a queue or batch this takes up, in reports; large ones count as several."""

    @property
    def is_abandoned(self) -> bool:
        """Whether its stream has ended."""
        return self.done.cancelled()


@dataclass(slots=True, eq=False)
class Hearsay:
    """What was found out about a host that does not report itself. Answered by whether it counts.

    It does as long as the host has not been heard since `heard_at`. It judges the checks that it lists and no
    others, moves no mark and ends no silence. `report` has no number.
    """

    host: int
    hostname: str
    report: Report
    heard_at: int
    found_at: int
    done: asyncio.Future[bool]
    weight = 1

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.done.cancelled()


@dataclass(slots=True, eq=False)
class Rejudgement:
    """Hosts whose stored values are to be judged by new rules, as (host, hostname)."""

    hosts: Sequence[tuple[int, str]]

    @property
    def weight(self) -> int:
        """How much of a batch this takes up, in reports."""
        return len(self.hosts)


Submitted = Registration | Submission | Hearsay
"""What somebody waits for the answer of."""

Item = Submitted | Rejudgement


class HelloNeeded(Exception):
    """What the stream's Hello said no longer holds; a new one makes it good."""


class HostGone(HelloNeeded):
    """The host was removed while it was connected, or its record is another's; its next Hello tells which."""

    def __init__(self) -> None:
        super().__init__("this host was removed or bound anew; say Hello again")


class HelloOver(HelloNeeded):
    """The host was renamed, or its agent has said Hello elsewhere since."""

    def __init__(self) -> None:
        super().__init__("this host was renamed or has connected elsewhere; say Hello again")


class StreamFull(HelloNeeded):
    """The stream has announced so many layouts that they have to be forgotten, as its end does."""

    def __init__(self) -> None:
        super().__init__("this stream has announced too many layouts to go on; say Hello again")


class EpochOver(HelloNeeded):
    """The host has said Hello with another epoch since, perhaps to another collector."""

    def __init__(self) -> None:
        super().__init__("this host has begun another epoch; say Hello again")
