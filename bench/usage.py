"""What processes use, by the kernel's word: proc(5)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

_TICK = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h
_Usage = TypeVar("_Usage")


class Memory(NamedTuple):
    """Bytes: resident, and with shared pages counted by how many share them."""

    rss: int
    pss: int


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and its threads have used so far."""
    # The clock that clock_getcpuclockid(3) returns, in nanoseconds: /proc/PID/stat counts in hundredths.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def cpu_seconds_with_children(pid: int) -> float:
    """The same with the children that have ended and were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return cpu_seconds(pid) + sum(map(int, fields[13:15])) / _TICK


def memory(pid: int) -> Memory:
    """What a process has in memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return Memory(sizes["Rss"], sizes["Pss"])


def family(pid: int) -> list[int]:
    """A process and all that descend from it, as they are now."""
    parents: dict[int, list[int]] = {}
    for child, parent in _parents():
        parents.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], ())
    return found


def family_cpu_seconds(pid: int) -> float:
    """Of a process and all that descend from it, those included that have ended and were waited for."""
    return sum(_of_each(family(pid), cpu_seconds_with_children))


def family_memory(pid: int) -> Memory:
    """Of a process and all that descend from it."""
    sizes = list(_of_each(family(pid), memory))
    return Memory(sum(size.rss for size in sizes), sum(size.pss for size in sizes))


def _of_each(pids: Iterable[int], usage: Callable[[int], _Usage]) -> Iterator[_Usage]:
    """Of those that are still there."""
    for pid in pids:
        with suppress(OSError, KeyError):  # it has ended meanwhile; of a zombie there are no sizes
            yield usage(pid)


def _parents() -> Iterable[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(folder.name), int(fields[1])
