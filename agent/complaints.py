"""Which problems were told already: one that lasts for hours is one line in the log, not thousands."""

from __future__ import annotations

import logging
import re
from collections import deque

_REMEMBERED = 16
_NUMBER = re.compile(r"\d+")


class Complaints:
    """The problems that were told since things went well last, the latest 16 of them.

    Two that differ in numbers only (a time, a port) are the same.
    """

    def __init__(self) -> None:
        self._told: deque[str] = deque(maxlen=_REMEMBERED)

    def level(self, problem: str, level: int = logging.WARNING) -> int:
        """At which level to tell it: `level`, and DEBUG from the second time on."""
        essence = _NUMBER.sub("0", problem)
        if essence in self._told:
            return logging.DEBUG
        self._told.append(essence)
        return level

    def settle(self) -> bool:
        """Things go well again; whether anything had been told."""
        had_any = bool(self._told)
        self._told.clear()
        return had_any
