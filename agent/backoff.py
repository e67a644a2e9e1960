"""How long to wait before the next try: exponential backoff with full jitter.

The formula is "Full Jitter" of Marc Brooker's "Exponential Backoff And Jitter"
(AWS Architecture Blog, 2015): sleep = random_between(0, min(cap, base * 2 ** attempt)). Of the
variants compared there it brings a crowd back with the least work for the server.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds: `base` bounds the first wait, `cap` every later one."""

    base: float = 1.0
    cap: float = 60.0

    def ceiling(self, attempt: int) -> float:
        """The longest wait, in seconds, before the try that follows `attempt` earlier failures."""
        # 2.0 ** 1024 overflows; long before that the cap has been reached by any sensible base.
        return min(self.cap, self.base * 2.0 ** min(attempt, 64))

    def delay(self, attempt: int, draw: float) -> float:
        """The wait in seconds; `draw` is a random number, uniform in [0, 1)."""
        return draw * self.ceiling(attempt)
