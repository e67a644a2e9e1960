"""What the agent gives back of the memory that only its start or a new connection needed.

Importing, connecting and the handshake of TLS run through much code that a report every 15 s never enters again.
What the kernel has read of it stays mapped until memory is short, and counts as the agent's (RSS).
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # malloc.h of glibc
_MADV_DONTNEED = 4  # asm-generic/mman-common.h, on every architecture but alpha

_c = ctypes.CDLL(None, use_errno=True)
_c.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Mapping(NamedTuple):
    """A part of the address space, from `start` to before `end`."""

    start: int
    end: int


def use_one_heap() -> None:
    """Have all threads allocate from one heap, not each from its own; to be called before there are any."""
    if hasattr(_c, "mallopt"):  # the other C library, musl, has one heap anyway
        _c.mallopt(_M_ARENA_MAX, 1)


class LoadedCode:
    """The programs and libraries that are loaded when this is made, while no other thread may load any.

    They stay where they are for as long as the process lives, which is not so for what is loaded later.
    """

    def __init__(self) -> None:
        self._mappings: list[Mapping] = []
        try:
            with Path("/proc/self/smaps").open(encoding="utf-8", errors="surrogateescape") as smaps:
                self._mappings += unchanged(smaps)
        except OSError as error:  # a kernel without it, or a sandbox
            log.debug("code stays in memory: %s", error)

    def give_back(self) -> None:
        """Unmap what was read of them. What is needed is mapped again at its next use. Takes milliseconds."""
        for start, end in self._mappings:
            if _c.madvise(start, end - start, _MADV_DONTNEED) != 0:
                log.debug("code stays in memory: madvise failed with errno %d", ctypes.get_errno())


def unchanged(smaps: Iterable[str]) -> Iterator[Mapping]:
    """What /proc/PID/smaps (proc(5)) lists as mapped from files, read-only, and the same as in them.

    What the loader changed in a read-only part, and would be lost, is counted as anonymous there.
    """
    mapping = None
    for line in smaps:
        name, *values = line.split()
        if not name.endswith(":"):
            permissions, path = values[0], values[4:]
            start, _, end = name.partition("-")
            is_code = permissions in ("r-xp", "r--p") and path and path[0].startswith("/")
            mapping = Mapping(int(start, 16), int(end, 16)) if is_code else None
        elif name == "Anonymous:" and mapping is not None and values[0] == "0":
            yield mapping
