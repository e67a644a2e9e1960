"""A machine that does not exist: its identity, its layout and values that walk at random.

The series are those of the agent's own checks. Values are cheap to make (a few microseconds), so one
process can play thousands of hosts; they are a function of the seed alone.
"""

from __future__ import annotations

import random
import uuid
from enum import Enum

from fleetpulse.model import CheckKey, CheckLayout, CheckResult, HostId, Layout, Measurement, State

GROUP = "simulated"
_NAMESPACE = uuid.UUID("3f9f3c83-94a5-4a6a-9d0c-9a6fbb5d3f5e")
_GIB = float(1 << 30)

_FILESYSTEM = (
    ("system.filesystem.inodes.utilization", "1"),
    ("system.filesystem.limit", "By"),
    ("system.filesystem.usage{system.filesystem.state=free}", "By"),
    ("system.filesystem.usage{system.filesystem.state=used}", "By"),
    ("system.filesystem.utilization", "1"),
)
# Sorted by check and instance, as the agent's own layouts are.
_CHECKS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "cpu",
        "",
        (
            ("system.cpu.logical.count", "{cpu}"),
            ("system.cpu.utilization", "1"),
            ("system.cpu.utilization{cpu.mode=iowait}", "1"),
            ("system.cpu.utilization{cpu.mode=steal}", "1"),
            ("system.cpu.utilization{cpu.mode=system}", "1"),
            ("system.cpu.utilization{cpu.mode=user}", "1"),
        ),
    ),
    (
        "disk",
        "nvme0n1",
        (
            ("system.disk.io_time", "s/s"),
            ("system.disk.io{disk.io.direction=read}", "By/s"),
            ("system.disk.io{disk.io.direction=write}", "By/s"),
            ("system.disk.operations{disk.io.direction=read}", "{operation}/s"),
            ("system.disk.operations{disk.io.direction=write}", "{operation}/s"),
        ),
    ),
    ("filesystem", "/", _FILESYSTEM),
    ("filesystem", "/home", _FILESYSTEM),
    (
        "load",
        "",
        (
            ("system.cpu.load_average.15m", "{thread}"),
            ("system.cpu.load_average.1m", "{thread}"),
            ("system.cpu.load_average.5m", "{thread}"),
        ),
    ),
    (
        "memory",
        "",
        (
            ("system.memory.limit", "By"),
            ("system.memory.linux.available", "By"),
            ("system.memory.usage{system.memory.state=used}", "By"),
            ("system.memory.utilization", "1"),
        ),
    ),
    (
        "network",
        "eth0",
        (
            ("system.network.errors{network.io.direction=receive}", "{error}/s"),
            ("system.network.errors{network.io.direction=transmit}", "{error}/s"),
            ("system.network.io{network.io.direction=receive}", "By/s"),
            ("system.network.io{network.io.direction=transmit}", "By/s"),
            ("system.network.packet.count{network.io.direction=receive}", "{packet}/s"),
            ("system.network.packet.count{network.io.direction=transmit}", "{packet}/s"),
        ),
    ),
    (
        "processes",
        "",
        (
            ("system.process.count", "{process}"),
            ("system.process.count{process.state=defunct}", "{process}"),
            ("system.process.count{process.state=running}", "{process}"),
        ),
    ),
    (
        "swap",
        "",
        (
            ("system.paging.usage{system.paging.state=used}", "By"),
            ("system.paging.utilization", "1"),
        ),
    ),
    ("uptime", "", (("system.boot_time", "s"), ("system.uptime", "s"))),
)

LAYOUT = Layout(
    tuple(
        CheckLayout(CheckKey(name, instance), tuple(Measurement(*m) for m in measurements))
        for name, instance, measurements in _CHECKS
    )
)
_PROCESSES = next(index for index, check in enumerate(LAYOUT.checks) if check.key.name == "processes")


class Role(Enum):
    """What a host does in a story."""

    STEADY = "steady"
    DISK_FILLS = "its /home fills up to critical and is cleaned up"
    DIES = "goes silent for good"
    COMES_BACK = "goes silent and comes back"
    REBOOTS = "reboots"
    CHECK_FAILS = "one of its checks times out for a while"


# By position in every twenty hosts, so that a story needs no more than twenty.
_ROLES = {
    3: Role.DISK_FILLS,
    5: Role.DIES,
    9: Role.REBOOTS,
    11: Role.COMES_BACK,
    13: Role.CHECK_FAILS,
    17: Role.DISK_FILLS,
}


class SimulatedHost:
    """Host `number`, from 1. `now` is always seconds since the simulation began."""

    def __init__(self, number: int, seed: int, *, story: bool) -> None:
        self.name = f"sim-{number:03}"
        self.host_id = HostId(str(uuid.uuid5(_NAMESPACE, f"{seed}/{self.name}")))
        self.role = _ROLES.get(number % 20, Role.STEADY) if story else Role.STEADY
        self._random = random.Random(f"{seed}/{number}")
        draw = self._random.random
        self._cpus = float(2 ** int(2 + 4 * draw()))
        self._memory = self._cpus * 4 * _GIB
        self._disk = 256 * _GIB * int(1 + 4 * draw())
        self._busy = 0.1 + 0.4 * draw()
        self._used = 0.2 + 0.4 * draw()
        self._root = 0.3 + 0.3 * draw()
        self._home = 0.3 + 0.4 * draw()
        self._traffic = 1e5 + 1e6 * draw()
        self._load = [self._busy * self._cpus] * 3
        self._tasks = 120 + 200 * draw()
        self._uptime = 86_400 * 60 * draw()
        self._boots = 0

    @property
    def boot_id(self) -> str:
        """The kernel's id of the current boot."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.host_id}/{self._boots}"))

    @property
    def machine_id(self) -> str:
        """What recognises a copy of this host."""
        return uuid.uuid5(_NAMESPACE, f"{self.host_id}/machine").hex

    def reboot(self, now: float) -> None:
        """A new boot id; the uptime starts again."""
        self._boots += 1
        self._uptime = -now

    def facts(self) -> dict[str, str]:
        """The inventory."""
        return {
            "host.cpu.model.name": "Simulated CPU",
            "host.cpu.logical.count": f"{self._cpus:.0f}",
            "host.memory.size": f"{self._memory:.0f}",
            "os.type": "linux",
            "os.name": "Simulation",
        }

    def is_silent(self, now: float) -> bool:
        """Whether the host is dead at this point of its story."""
        if self.role is Role.DIES:
            return now >= 5
        if self.role is Role.COMES_BACK:
            return 2 <= now < 16
        return self.role is Role.REBOOTS and 6 <= now < 9

    def values(self, now: float, unix_now: float) -> tuple[float, ...]:
        """One report's values; `unix_now` in seconds since the Unix epoch."""
        step = self._random.uniform
        busy = self._busy = _walk(self._busy, step(-0.04, 0.04), 0.01, 0.9)
        used = self._used = _walk(self._used, step(-0.01, 0.01), 0.1, 0.85)
        root = self._root = _walk(self._root, step(-0.0005, 0.0005), 0.2, 0.8)
        home = self._home = _walk(self._home, step(-0.002, 0.002), 0.2, 0.8)
        if self.role is Role.DISK_FILLS:
            home = max(home, _filling(now))
        traffic = self._traffic = _walk(self._traffic, step(-1e5, 1e5), 1e4, 1e8)
        tasks = self._tasks = _walk(self._tasks, step(-3, 3), 80, 600)
        cpus = self._cpus
        load = self._load
        for index, weight in enumerate((0.02, 0.3, 0.06)):  # 15, 1 and 5 minutes
            load[index] += weight * (busy * cpus - load[index])
        memory, disk = self._memory, self._disk
        writes = busy * 2e7
        uptime = self._uptime + now
        failing = self.role is Role.CHECK_FAILS and _failing(now)
        missing = float("nan")
        return (
            # cpu
            cpus,
            busy,
            busy * 0.05,
            0.0,
            busy * 0.2,
            busy * 0.75,
            # disk
            busy * 0.5,
            busy * 5e6,
            writes,
            busy * 120,
            busy * 340,
            # filesystem / and /home
            root * 0.3,
            disk * 0.25,
            disk * 0.25 * (1 - root),
            disk * 0.25 * root,
            root,
            home * 0.2,
            disk,
            disk * (1 - home),
            disk * home,
            home,
            # load
            load[0],
            load[1],
            load[2],
            # memory
            memory,
            memory * (1 - used),
            memory * used,
            used,
            # network
            0.0,
            0.0,
            traffic,
            traffic * 0.4,
            traffic / 900,
            traffic / 1800,
            # processes
            missing if failing else float(int(tasks)),
            missing if failing else 0.0,
            missing if failing else float(int(1 + busy * cpus)),
            # swap
            0.0,
            0.0,
            # uptime
            float(round(unix_now - uptime)),
            uptime,
        )

    def results(self, now: float) -> tuple[CheckResult, ...]:
        """The checks' own states."""
        if self.role is Role.CHECK_FAILS and _failing(now):
            return (CheckResult(_PROCESSES, State.UNKNOWN, "timed out after 5 s"),)
        return ()


def _walk(value: float, by: float, low: float, high: float) -> float:
    return min(max(value + by, low), high)


def _filling(now: float) -> float:
    """The story's disk, again every minute: fills for 12 s, is full for 20 s, is cleaned up."""
    phase = now % 60
    return 0.8 + 0.18 * min(phase / 12, 1) if phase < 32 else 0.0


def _failing(now: float) -> bool:
    return now % 40 >= 8 and now % 40 < 24
