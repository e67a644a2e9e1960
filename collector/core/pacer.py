"""How often somebody may do something: a token bucket for each, kept as one number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_REMEMBERED = 50_000  # more than there can be streams; about 200 bytes each


class Pacer:
    """Lets each key spend `rate` a second, and `burst` at once after a rest. Times in seconds.

    A key's number is the time at which its bucket will be full again (the virtual scheduling algorithm
    of ITU-T I.371, annex A). Who was heard of the longest ago is forgotten first.
    """

    def __init__(self, rate: float, burst: float):
        self._seconds_each = 1 / rate
        self._depth = burst / rate
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def spend(self, key: Hashable, amount: float, now: float) -> float:
        """Take `amount` from the key's bucket, on credit if need be; how long to wait until that is paid."""
        full_at = self._full_at
        known = full_at.get(key)
        if known is None:
            if len(full_at) >= _REMEMBERED:
                full_at.popitem(last=False)
            known = now
        else:
            full_at.move_to_end(key)
            if known < now:
                known = now
        full_at[key] = known = known + amount * self._seconds_each
        wait = known - now - self._depth
        return wait if wait > 0 else 0.0

    def try_spend(self, key: Hashable, amount: float, now: float) -> bool:
        """Take `amount` if the bucket holds as much; whether it did."""
        if max(self._full_at.get(key, now), now) + amount * self._seconds_each - now > self._depth:
            return False
        self.spend(key, amount, now)
        return True
