"""The collector's clock."""

from __future__ import annotations

import time


class Clock:
    """Milliseconds since the Unix epoch that never jump.

    Set from the system's clock once; from then on it follows the monotonic one. Silence is a
    difference of two of its readings, so a step of the system's clock makes nobody stale.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> int:
        """The current time."""
        return int((self._offset + time.monotonic()) * 1000)
