"""Which machines of a list report, asked again and again until all do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.core.silence import Presence
from collector.store.collectors import Listening, load_listening
from collector.store.enrolment import AmbiguousName, load_known_names
from collector.store.errors import StoreUnavailable
from collector.store.store import Transaction

_INTERVAL = 1.0  # seconds between two looks


class Missing(NamedTuple):
    """A machine that does not report. `host` is its record's number, None if none stands for it.

    `ambiguous` says which records the name may mean, if it is more than one.
    """

    name: str
    host: int | None = None
    ambiguous: str = ""


@dataclass(frozen=True)
class Roll:
    """Of all machines asked for, those that do not report."""

    listening: Listening
    total: int
    missing: Sequence[Missing]

    @property
    def is_complete(self) -> bool:
        """Whether all report, and somebody is there to hear them."""
        return not self.missing and self.listening.since is not None


def call_roll(tx: Transaction, names: Sequence[str]) -> Roll:
    """Who among the machines of these names is not heard. Two queries, however many they are."""
    listening = load_listening(tx)
    known = load_known_names(tx)
    missing = []
    for name in names:
        try:
            record = known.find(name)
        except AmbiguousName as error:
            missing.append(Missing(name, ambiguous=str(error)))
            continue
        if record is None:
            missing.append(Missing(name))
        elif record.presence(listening) is not Presence.FRESH:
            missing.append(Missing(name, record.host))
    return Roll(listening, len(names), missing)


class Waiting(NamedTuple):
    """What waiting takes: a clock and a pause in seconds, and who is told how it goes.

    `tell` gets the roll and the seconds that are left, `complain` each failure of the database that is not
    the same as at the last look.
    """

    clock: Callable[[], float]
    pause: Callable[[float], None]
    tell: Callable[[Roll, float], None]
    complain: Callable[[StoreUnavailable], None]


def wait_for_all(call: Callable[[], Roll], timeout: float, waiting: Waiting) -> Roll:
    """The first complete roll; the last one if there is none within `timeout` seconds.

    A database that is away for a while is waited for. Raises StoreUnavailable if it is away at the end.
    """
    end = waiting.clock() + timeout
    trouble = ""
    while True:
        left = max(0.0, end - waiting.clock())
        try:
            roll = call()
        except StoreUnavailable as error:
            if not left:
                raise
            if str(error) != trouble:
                waiting.complain(error)
            trouble = str(error)
        else:
            if roll.is_complete or not left:
                return roll
            trouble = ""
            waiting.tell(roll, left)
        waiting.pause(min(_INTERVAL, left))
