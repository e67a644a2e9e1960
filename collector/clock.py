"""The collector's clock."""

from __future__ import annotations

import time
from collections.abc import Callable


def _steady() -> float:
    """Seconds that go on evenly, also while the machine is suspended, whatever becomes of the time of day."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """Milliseconds since the Unix epoch that never jump back.

    Set from the system's clock once, or from another collector's (`go_on_from`); from then on it
    follows a clock that nobody can set. Silence is a difference of two of its readings, so a step of
    the system's clock makes nobody stale. `system` and `steady` yield seconds.
    """

    def __init__(self, system: Callable[[], float] = time.time, steady: Callable[[], float] = _steady):
        self._system = system
        self._steady = steady
        self._offset = system() - steady()

    def now(self) -> int:
        """The current time."""
        return round((self._offset + self._steady()) * 1000)

    def go_on_from(self, now: int) -> None:
        """Take over a time that others agreed on."""
        self._offset = now / 1000 - self._steady()

    def behind_system(self) -> int:
        """Milliseconds by which the system's clock is ahead of this one; negative when it is behind."""
        return round(self._system() * 1000) - self.now()
