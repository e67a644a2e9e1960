"""Control groups of the lab's machines, by which all processes of a machine are found and stopped.

Both kinds are served: one hierarchy for each controller, of which `freezer` freezes, and the unified one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.processes import wait_until

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("freezer", "memory", "pids", "cpu", "cpuacct", "systemd", "unified")


def missing_cgroups() -> str:
    """What keeps groups from being made here; empty when nothing does."""
    if _has_freezer() or (_ROOT / "cgroup.controllers").exists():
        return ""
    return f"no control groups under {_ROOT}"


class MachineGroup:
    """The group of one machine, in every hierarchy."""

    def __init__(self, lab: str, machine: str):
        self._lab = lab
        self._machine = machine
        self.folders = [parent / lab / machine for parent in _parents()]
        self._first = self.folders[0]

    def make(self) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True)

    def remove(self) -> None:
        """Remove it with all groups in it, once no process is there; and the lab's after the last machine."""
        for folder in self.folders:
            for inner in sorted(folder.rglob("*/"), reverse=True):
                inner.rmdir()
            with suppress(OSError):  # there is none, or others are still there
                folder.rmdir()
                folder.parent.rmdir()
                folder.parent.parent.rmdir()

    def pids(self) -> list[int]:
        """All processes of the machine, and those that run it."""
        found = []
        for folder in (self._first, *self._first.rglob("*/")):
            with suppress(OSError):
                found += [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
        return found

    @property
    def is_frozen(self) -> bool:
        return self._state() in ("FROZEN", "FREEZING", "1")

    def set_frozen(self, wanted: bool) -> None:
        """Stop all processes, or let them go on; returns when they do."""
        word = (("THAWED", "FROZEN") if _has_freezer() else ("0", "1"))[wanted]
        self._switch.write_text(word)
        wait_until(lambda: self._state() == word, what=f"{self._machine} is {word}")

    @property
    def _switch(self) -> Path:
        return self._first / ("freezer.state" if _has_freezer() else "cgroup.freeze")

    def _state(self) -> str:
        return self._switch.read_text().strip() if self._switch.exists() else ""


def _has_freezer() -> bool:
    return (_ROOT / "freezer").is_dir()


def _parents() -> list[Path]:
    """Where the labs' groups are, in each hierarchy; that which freezes comes first."""
    if not _has_freezer():
        return [_ROOT / "fleetpulse-lab"]
    return [_ROOT / name / "fleetpulse-lab" for name in _CONTROLLERS if (_ROOT / name).is_dir()]
