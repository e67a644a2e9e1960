"""How much memory and how many threads the watched processes use, and whether that grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """One look at a process: seconds since the beginning, MB resident, threads."""

    at: float
    resident: float
    threads: int


def look(pid: int, at: float) -> Sample | None:
    """What a process uses now; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in fields:  # a zombie has none
        return None
    return Sample(at, int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"]))


@dataclass
class Memory:
    """Samples of processes of one kind, each from its start to its end."""

    settling: float
    """Seconds after a process's first sample that do not count: it imports, connects and fills caches."""
    by_pid: dict[int, list[Sample]] = field(default_factory=dict)

    def note(self, pid: int, at: float) -> None:
        """Take a sample."""
        sample = look(pid, at)
        if sample is not None:
            self.by_pid.setdefault(pid, []).append(sample)

    @property
    def peak(self) -> float:
        """MB."""
        return max((sample.resident for samples in self.by_pid.values() for sample in samples), default=0.0)

    @property
    def most_threads(self) -> int:
        return max((sample.threads for samples in self.by_pid.values() for sample in samples), default=0)

    @property
    def slope(self) -> float | None:
        """MB per hour, by least squares within each process's life; None for too little to tell."""
        above = below = 0.0
        for samples in self.by_pid.values():
            settled = [sample for sample in samples if sample.at - samples[0].at >= self.settling]
            if len(settled) < 3:
                continue
            mean_at = sum(sample.at for sample in settled) / len(settled)
            mean_mb = sum(sample.resident for sample in settled) / len(settled)
            above += sum((s.at - mean_at) * (s.resident - mean_mb) for s in settled)
            below += sum((s.at - mean_at) ** 2 for s in settled)
        return above / below * 3600 if below else None
