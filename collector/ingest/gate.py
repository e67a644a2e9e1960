"""How much may wait at once, and when agents are asked to pause."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

_CLOSE_AT = 0.80
_OPEN_BELOW = 0.60


class Gate:
    """Counts the reports between admission and commit. Used on one event loop only.

    It closes when 80 % of `limit` wait and opens again below 60 %, so that agents are not asked to
    pause and to go on in turns. Nothing gets in beyond the limit, unless it is alone.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._queue: OrderedDict[asyncio.Future[None], int] = OrderedDict()  # anyone may leave it at once
        self._open = asyncio.Event()
        self._open.set()
        self.pending = 0

    @property
    def is_closed(self) -> bool:
        """Whether agents should pause."""
        return not self._open.is_set()

    async def wait_open(self) -> None:
        """Wait until agents may go on."""
        await self._open.wait()

    def try_enter(self, weight: int) -> bool:
        """Count `weight` more reports, if they fit in and nobody waits; whether they did."""
        if self._queue or not self._fits(weight):
            return False
        self._count(weight)
        return True

    async def enter(self, weight: int) -> None:
        """Wait until `weight` more reports fit in, then count them; first come, first served."""
        if self.try_enter(weight):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[turn] = weight
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queue.pop(turn, None)
                self._admit()  # it may have held up a smaller one
            else:
                self.leave(weight)  # it was counted in just before
            raise

    def leave(self, weight: int) -> None:
        """Count `weight` reports off: they are committed, or refused."""
        self._count(-weight)
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            turn, weight = next(iter(self._queue.items()))
            if not turn.done():
                if not self._fits(weight):
                    return
                self._count(weight)
                turn.set_result(None)
            del self._queue[turn]

    def _fits(self, weight: int) -> bool:
        return not self.pending or self.pending + weight <= self._limit

    def _count(self, weight: int) -> None:
        self.pending += weight
        if self.pending >= _CLOSE_AT * self._limit:
            self._open.clear()
        elif self.pending < _OPEN_BELOW * self._limit:
            self._open.set()
