"""Who asked for the CA certificates, and whether an attempt to enroll followed.

A machine that finds the wrong CA there, or a certificate without the name that it was told, leaves and says
nothing. That is all that its collector ever sees of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

_MOST = 512  # that are waited for at once; beyond, the oldest counts as one that has left


class Visits:
    """Calls `on_leave` with the address of each visitor from whose address no attempt came in time.

    `patience` in seconds. Which of several behind one address it was cannot be told, only how many. For the
    event loop's thread.
    """

    def __init__(self, on_leave: Callable[[str], None], patience: float):
        self._on_leave = on_leave
        self._patience = patience
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[str, asyncio.TimerHandle]] = {}  # the oldest first

    def begin(self, address: str) -> None:
        """Somebody asks for the CA certificates."""
        if len(self._waiting) >= _MOST:
            self._leave(next(iter(self._waiting)))
        number = next(self._numbers)
        timer = asyncio.get_running_loop().call_later(self._patience, self._leave, number)
        self._waiting[number] = address, timer

    def end(self, address: str) -> None:
        """Somebody tries to enroll."""
        for number, (other, timer) in self._waiting.items():
            if other == address:
                timer.cancel()
                del self._waiting[number]
                return

    def _leave(self, number: int) -> None:
        address, timer = self._waiting.pop(number)
        timer.cancel()
        self._on_leave(address)
