"""How long to wait before the next try: a random part of how long things have been going wrong.

Counting attempts, as the usual exponential backoff does, punishes short outages: with full jitter some
of a few hundred agents draw five small waits within five seconds, and the sixth may then be half a
minute. Bounded by the time since things went well, waits grow as fast over a long outage (by half on
average each time), but whoever waits is back before an outage has lasted twice as long as it did.
The jitter is the "Full Jitter" of Marc Brooker's "Exponential Backoff And Jitter" (AWS Architecture
Blog, 2015), which brings a crowd back with the least work for the server.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds: `base` bounds the first waits, `cap` the latest ones."""

    base: float = 1.0
    cap: float = 60.0

    def ceiling(self, elapsed: float) -> float:
        """The longest wait, in seconds, when nothing has gone well for `elapsed` seconds."""
        return min(self.cap, max(self.base, elapsed))

    def delay(self, elapsed: float, draw: float) -> float:
        """The wait in seconds; `draw` is a random number, uniform in [0, 1)."""
        return draw * self.ceiling(elapsed)
