"""What waits in a writer's inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.core.status import HostRecord
from fleetpulse.model import Facts, Report


class Registered(NamedTuple):
    """A host whose rows exist, and the last committed sequence number of its epoch (0: none)."""

    host: int
    committed_seq: int


@dataclass(slots=True, eq=False)
class Registration:
    """A Hello: make the host's rows, note what changed. Answered by `Registered`."""

    record: HostRecord
    epoch: int
    received_at: int
    done: asyncio.Future[Registered]
    weight = 1

    @property
    def is_abandoned(self) -> bool:
        """Whether its stream has ended: the host may have said another Hello since, and that one counts."""
        return self.done.cancelled()


@dataclass(slots=True, eq=False)
class Submission:
    """Reports, or facts, of one host. Answered by the high-water mark after the commit."""

    host: int
    hostname: str
    epoch: int
    reports: Sequence[Report]
    facts: Facts | None
    received_at: int
    done: asyncio.Future[int]
    cost: int = 1

    @property
    def weight(self) -> int:
        """How much of a queue or batch this takes up, in reports; large ones count as several."""
        return max(self.cost, len(self.reports))

    @property
    def is_abandoned(self) -> bool:
        """Whether its stream has ended."""
        return self.done.cancelled()


@dataclass(slots=True, eq=False)
class Rejudgement:
    """Hosts whose stored values are to be judged by new rules, as (host, hostname)."""

    hosts: Sequence[tuple[int, str]]

    @property
    def weight(self) -> int:
        """How much of a batch this takes up, in reports."""
        return len(self.hosts)


Item = Registration | Submission | Rejudgement


class HelloNeeded(Exception):
    """What the stream's Hello said no longer holds; a new one makes it good."""


class HostGone(HelloNeeded):
    """The host was removed while it was connected; its next Hello makes it anew."""

    def __init__(self) -> None:
        super().__init__("this host was removed; say Hello again")


class StreamFull(HelloNeeded):
    """The stream has announced so many layouts that they have to be forgotten, as its end does."""

    def __init__(self) -> None:
        super().__init__("this stream has announced too many layouts to go on; say Hello again")


class EpochOver(HelloNeeded):
    """The host has said Hello with another epoch since, perhaps to another collector."""

    def __init__(self) -> None:
        super().__init__("this host has begun another epoch; say Hello again")
