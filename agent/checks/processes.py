"""How many processes there are, and in which state."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from pathlib import Path

from agent.checks import CheckOptions, SingleCheck, check
from fleetpulse.machine.processes import CREATED, count
from fleetpulse.machine.rates import CounterRates
from fleetpulse.model import Measurement
from fleetpulse.outcome import Values


class ProcessesOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much work one round may be."""

    max_reads: int = 200
    """Processes whose state is read in one round; the others keep the state that was read last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_reads < 1:
            raise ValueError(f"max_reads: {self.max_reads} is not at least 1")


@check("processes", ProcessesOptions)
class Processes(SingleCheck):
    """A process's state costs about 10 us to read, so on a machine with thousands they take turns.

    The number of processes is always exact, and every process that was not there before is read.
    """

    def __init__(self, options: ProcessesOptions) -> None:
        self._max_reads = options.max_reads
        self._states: dict[str, str] = {}
        self._rates: CounterRates[Measurement] = CounterRates()

    def measure(self, now: float) -> Values:
        """The numbers now, and the processes and threads created per second."""
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - half the time
        self._states = next_states(self._states, pids, self._max_reads, _read_state)
        return count(Counter(self._states.values())) | self._rates.update(now, {CREATED: _read_created()})


def next_states(
    before: Mapping[str, str], pids: Iterable[str], max_reads: int, read: Callable[[str], str | None]
) -> dict[str, str]:
    """The state letter of each process, those read longest ago first.

    Reads every process that is not in `before` and, up to `max_reads` in all, those whose turn it is.
    """
    alive = dict.fromkeys(pids)
    states = {pid: state for pid, state in before.items() if pid in alive}
    new = [pid for pid in alive if pid not in states]
    due = list(islice(states, max(0, max_reads - len(new))))
    for pid in chain(due, new):
        states.pop(pid, None)
        state = read(pid)
        if state is not None:
            states[pid] = state
    return states


def parse_state(stat: bytes) -> str:
    """The state letter in /proc/PID/stat: the field after the name, which may hold anything."""
    return stat.rpartition(b")")[2][1:2].decode()


def parse_created(stat: bytes) -> float:
    """The number of processes and threads created since boot, from /proc/stat."""
    return float(stat.partition(b"\nprocesses ")[2].split(maxsplit=1)[0])


def _read_state(pid: str) -> str | None:
    # Plain system calls: a file object would double the time, which thousands of processes multiply.
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            return parse_state(os.read(file, 512))
        finally:
            os.close(file)
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended in the meantime


def _read_created() -> float:
    return parse_created(Path("/proc/stat").read_bytes())
