"""What waits to be delivered: how much may, in which form it is read, and what any spool can do with it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fleetpulse import convert
from fleetpulse.model import Report


@dataclass(frozen=True, slots=True)
class Limits:
    """What the spool may hold before it drops the oldest: milliseconds of running, bytes of payload."""

    max_age: int = 24 * 3_600_000
    max_size: int = 64 << 20


class Waiting(NamedTuple):
    """The oldest reports that are not acked, in the form in which they travel.

    `layouts` holds those that the reports refer to and the reader does not know yet.
    """

    reports: tuple[bytes, ...] = ()
    layouts: Mapping[bytes, bytes] = {}
    last_seq: int = 0
    first_seq: int = 0


class Row(NamedTuple):
    """A report in the queue. `kept_at` in milliseconds on the spool's clock, `dropped` as in its payload."""

    seq: int
    kept_at: int
    layout_id: bytes
    payload: bytes
    dropped: int

    @classmethod
    def of(cls, report: Report, kept_at: int) -> Row:
        """The row that keeps `report`."""
        return cls(report.seq, kept_at, report.layout.id, convert.encode_report(report), report.dropped)


class Spool(Protocol):
    """What delivery needs of a queue. Numbers only go up, also across epochs."""

    sent_seq: int
    """The newest report that anybody may have been sent. After opening, the newest that was kept when
    an agent last reached a collector: what is newer has surely not been sent, so a collector that has it
    knows it from somewhere else."""

    @property
    def epoch(self) -> int:
        """New each time the queue lost its memory; 1 to 2^63-1."""

    @property
    def last_seq(self) -> int:
        """The number of the newest report; 0 before the first."""

    @property
    def is_contact_noted(self) -> bool:
        """Whether `note_contact` would change nothing."""

    def note_contact(self) -> None:
        """From now on reports may be sent. Call it before the first one is."""

    def peek(self, max_reports: int, max_bytes: int, known: Collection[bytes] = ()) -> Waiting:
        """The oldest reports within both bounds, but at least one if any waits."""

    def ack(self, seq: int) -> None:
        """Everything up to `seq` is committed elsewhere and may be forgotten."""

    def discard(self, seq: int) -> None:
        """Drop one report that nobody takes; it is counted as dropped."""

    def pending(self) -> int:
        """How many reports wait."""

    def new_epoch(self) -> None:
        """Start a new epoch; what waits is kept and belongs to it."""


def random_epoch() -> int:
    """A number that no earlier spool of this host had, as good as surely."""
    return secrets.randbelow(2**63 - 1) + 1
