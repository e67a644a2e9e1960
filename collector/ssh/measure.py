"""Raw readings become what a report says: the agent's checks, and the two that only SSH has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from collector.ssh import facts as inventory
from collector.ssh.parse import (
    Readings,
    Spaces,
    boot_time,
    cpu_count,
    load_averages,
    number,
    numbers,
    parse,
    parse_mounts,
)
from fleetpulse.content import ReportBuilder, ReportContent
from fleetpulse.machine import cpu, disk, filesystem, load, memory, network, processes, swap, uptime
from fleetpulse.machine.fingerprint import machine_fingerprint
from fleetpulse.machine.rates import CounterRates, TableRates
from fleetpulse.model import Facts, Layout, Measurement, State
from fleetpulse.outcome import CheckOutcome, Failure, NoData, Reading, Values, Verdict

DURATION = Measurement("fleetpulse.ssh.duration", "s")
FAILED_UNITS = Measurement("systemd.unit.count{systemd.unit.state=failed}", "{unit}")
MAX_NAMED_UNITS = 10
"""Failed units that a message names."""

_KIB = 1024
# The columns of the line "cpu" in /proc/stat (man 5 proc_stat). They are in ticks, whose length does
# not matter for shares.
_CPU_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
# The columns of /proc/net/dev and of /sys/block/*/stat under psutil's names.
_NETWORK_FIELDS = {"bytes_recv": 0, "packets_recv": 1, "errin": 2, "dropin": 3}
_NETWORK_FIELDS |= {"bytes_sent": 8, "packets_sent": 9, "errout": 10, "dropout": 11}
_SECTOR = 512
# Filesystems of other systems that store nothing; those are named after themselves, not after a device.
_FOREIGN_NOT_REAL = (*filesystem.NOT_REAL, "fdescfs", "linprocfs", "linsysfs", "procfs", "map *")
_FOREIGN_MOUNTS = (*filesystem.CONTAINERS, "/System/Volumes/[!D]*")

_CUT = "the output ended before it"


class Measured(NamedTuple):
    """What a probe says, before it has a number.

    `measured_at` is the host's clock in milliseconds since the Unix epoch, 0 if it is not known.
    `agent` is what is known of the agent there, in a few lines; empty if nothing is.
    """

    content: ReportContent
    measured_at: int
    facts: Facts
    machine_id: str
    boot_id: str
    agent: str


class _Unreadable(Exception):
    """What a check looks at is not in the output."""


class HostMeasurer:
    """Measures one host, of which it keeps the previous counters, layout and facts.

    `last_layout` is that of the last report before the start, if it is known.
    """

    def __init__(self, last_layout: Layout | None = None) -> None:
        self._builder = ReportBuilder(last_layout)
        self._facts: Facts = {}
        self._facts_source: tuple[bytes, bytes] | None = None
        self._mounts: dict[str, bool] = {}
        self._mounts_source: bytes | None = None
        self._interfaces: dict[str, bool] = {}
        self._disks: dict[str, bool] = {}
        self._boot_id = ""
        self._forget_counters()

    def measure(self, output: bytes, duration: float) -> Measured:
        """What the output of one probe, which took `duration` seconds, says.

        Raises NotAProbe if it is something else. What is missing in it is UNKNOWN.
        """
        readings = parse(output)
        counters = readings.counters or {}
        boot_id = counters.get(b"boot_id", b"")[:64].decode("ascii", "replace")
        if boot_id and self._boot_id and boot_id != self._boot_id:
            self._forget_counters()
        self._boot_id = boot_id or self._boot_id
        now = number(counters.get(b"uptime"))
        outcomes = [
            _outcome("cpu", lambda: {"": self._cpu(readings, counters)}),
            _outcome("disk", lambda: self._disk(readings, now)),
            _outcome("filesystem", lambda: self._filesystem(readings)),
            _outcome("load", lambda: {"": _load(readings, counters)}),
            _outcome("memory", lambda: {"": _memory(readings, counters)}),
            _outcome("network", lambda: self._network(readings, now)),
            _outcome("processes", lambda: {"": self._processes(readings, counters, now)}),
            _outcome("ssh", lambda: {"": {DURATION: duration}}),
            _outcome("swap", lambda: {"": self._swap(readings, counters, now)}),
            _outcome("units", lambda: {"": _units(readings)}),
            _outcome("uptime", lambda: {"": _uptime(readings, counters)}),
        ]
        seconds = number(counters.get(b"date"))
        return Measured(
            self._builder.build(outcomes),
            int(seconds * 1000) if 0 < seconds < 1e12 else 0,
            self._take_facts(readings),
            machine_fingerprint(counters.get(b"machine_id", b"")[:64].decode("ascii", "replace").strip()),
            boot_id,
            readings.agent,
        )

    def _forget_counters(self) -> None:
        self._cpu_before: Mapping[str, float] | None = None
        self._disk_rates = TableRates()
        self._network_rates = TableRates()
        self._swap_rates: CounterRates[Measurement] = CounterRates()
        self._process_rates: CounterRates[Measurement] = CounterRates()

    def _cpu(self, readings: Readings, counters: Mapping[bytes, bytes]) -> Values:
        ticks = counters.get(b"cpu")
        fields = numbers(ticks, len(_CPU_FIELDS))
        if fields is None:
            raise _missing(readings, "/proc/stat", readings.counters)
        modes = cpu.seconds_by_mode(dict(zip(_CPU_FIELDS, fields, strict=True)))
        before, self._cpu_before = self._cpu_before, modes
        return {**cpu.count(cpu_count(counters.get(b"cpus", b""))), **cpu.shares(before, modes)}

    def _disk(self, readings: Readings, now: float) -> Mapping[str, Values]:
        if readings.disks is None:
            raise _missing(readings, "/sys/block", readings.facts)
        table = {}
        for name, row in readings.disks.items():
            wanted = self._disks.get(name)
            if wanted is None:
                wanted = self._disks[name] = bool(disk.select((name,)))
            if wanted:
                # A slash in a name (cciss/c0d0) is an exclamation mark in sysfs.
                table[name.replace("!", "/")] = disk.parse(
                    {
                        "read_count": row[0],
                        "read_bytes": row[2] * _SECTOR,
                        "write_count": row[4],
                        "write_bytes": row[6] * _SECTOR,
                        "busy_time": row[9],
                    }
                )
        if len(self._disks) > 2 * len(readings.disks):
            self._disks = {}
        rates = self._disk_rates.update(now, table)
        return {name: disk.at_most_all_the_time(values) for name, values in rates.items()}

    def _network(self, readings: Readings, now: float) -> Mapping[str, Values]:
        if readings.network is None:
            raise _missing(readings, "/proc/net/dev", readings.facts)
        table = {}
        for name, row in readings.network.items():
            wanted = self._interfaces.get(name)
            if wanted is None:
                wanted = self._interfaces[name] = bool(network.select((name,)))
            if wanted:
                table[name] = network.parse({field: row[i] for field, i in _NETWORK_FIELDS.items()})
        if len(self._interfaces) > 2 * len(readings.network):
            self._interfaces = {}
        return self._network_rates.update(now, table)

    def _filesystem(self, readings: Readings) -> Mapping[str, Reading | Failure]:
        if readings.mounts is None:
            return _foreign_filesystems(readings)
        if readings.mounts != self._mounts_source:
            table = parse_mounts(readings.mounts)
            types = {mount.mountpoint: mount.fstype for mount in table}
            self._mounts = {point: filesystem.is_network(types[point]) for point in filesystem.select(table)}
            self._mounts_source = readings.mounts
        found: dict[str, Reading | Failure] = {}
        for point, is_network in self._mounts.items():
            spaces = readings.remote if is_network else readings.local
            reading = _space(readings, spaces, point)
            if reading is not None:
                found[point] = reading
        return found

    def _processes(self, readings: Readings, counters: Mapping[bytes, bytes], now: float) -> Values:
        if readings.processes_hidden:
            raise _Unreadable("the processes of other users are hidden (mount option hidepid)")
        if readings.processes is None:
            raise _missing(readings, "/proc", readings.facts)
        total = readings.processes.get("count")
        if total is None:
            values = processes.count(readings.processes)
        else:
            values = dict.fromkeys(processes.count({}), math.nan) | {processes.COUNT: float(total)}
        created = number(counters.get(b"processes"))
        return values | self._process_rates.update(now, {processes.CREATED: created})

    def _swap(self, readings: Readings, counters: Mapping[bytes, bytes], now: float) -> Values:
        total, free = number(counters.get(b"SwapTotal:")), number(counters.get(b"SwapFree:"))
        if math.isnan(total):
            raise _missing(readings, "/proc/meminfo", readings.counters)
        moved = swap.pages(number(counters.get(b"pswpin")), number(counters.get(b"pswpout")))
        rates = self._swap_rates.update(now, moved)
        return swap.usage(total * _KIB, (total - free) * _KIB, free * _KIB) | rates

    def _take_facts(self, readings: Readings) -> Facts:
        if readings.facts is not None and self._facts_source != (readings.system, readings.facts):
            self._facts = inventory.parse(readings.kernel, readings.facts)
            self._facts_source = readings.system, readings.facts
        return self._facts


def _outcome(name: str, measure: Callable[[], Mapping[str, Reading | Failure]]) -> CheckOutcome:
    try:
        return CheckOutcome(name, measure())
    except NoData:
        return CheckOutcome(name, {})
    except _Unreadable as reason:
        return CheckOutcome(name, Failure(str(reason)))


def _missing(readings: Readings, what: str, later: object) -> _Unreadable:
    """Why `what` is not there. `later` is a part that comes after it: it is None if the output ended."""
    if later is None and not readings.is_complete:
        return _Unreadable(_CUT)
    system = readings.kernel.name
    foreign = f"this is {system}: " if system not in ("Linux", "") else ""
    return _Unreadable(f"{foreign}{what} cannot be read")


def _load(readings: Readings, counters: Mapping[bytes, bytes]) -> Values:
    averages = load_averages(counters)
    if averages is None:
        raise _missing(readings, "/proc/loadavg", readings.counters)
    return load.parse(averages, cpu_count(counters.get(b"cpus", b"")))


def _memory(readings: Readings, counters: Mapping[bytes, bytes]) -> Values:
    total = number(counters.get(b"MemTotal:"))
    if math.isnan(total):
        raise _missing(readings, "/proc/meminfo", readings.counters)
    free, buffers = number(counters.get(b"MemFree:")), number(counters.get(b"Buffers:"))
    cached = number(counters.get(b"Cached:"))
    available = number(counters.get(b"MemAvailable:", b""))
    if math.isnan(available):  # kernels before 3.14: what could be freed, as `free` took it then
        available = free + buffers + cached
    if available > total:  # in a container, where some of the numbers are the machine's
        available = free
    reclaimable = number(counters.get(b"SReclaimable:", b"0"))
    return memory.parse(
        {
            "total": total * _KIB,
            "available": available * _KIB,
            "free": free * _KIB,
            "buffers": buffers * _KIB,
            "cached": (cached + reclaimable) * _KIB,
        }
    )


def _uptime(readings: Readings, counters: Mapping[bytes, bytes]) -> Values:
    booted, up = boot_time(counters), number(counters.get(b"uptime"))
    if b"boottime" in counters:
        up = number(counters.get(b"date")) - booted
    if math.isnan(up):
        raise _missing(readings, "/proc/uptime", readings.counters)
    return uptime.values(up, booted)


def _units(readings: Readings) -> Reading:
    if readings.units is None:
        if readings.is_complete:
            raise NoData
        raise _Unreadable(_CUT)
    if readings.units.problem:
        raise _Unreadable(readings.units.problem)
    failed = sorted(readings.units.failed)
    values = {FAILED_UNITS: float(len(failed))}
    if not failed:
        return values
    more = f" and {len(failed) - MAX_NAMED_UNITS} more" if len(failed) > MAX_NAMED_UNITS else ""
    return Verdict(State.WARNING, f"failed: {', '.join(failed[:MAX_NAMED_UNITS])}{more}", values)


def _foreign_filesystems(readings: Readings) -> Mapping[str, Reading | Failure]:
    """Where the table of mounts is not to be had, `df` says what is mounted."""
    local = readings.local
    if local is None or not local.by_mount:
        if local is not None and local.problem and readings.is_complete:
            raise _Unreadable(f"df: {local.problem}")
        raise _missing(readings, "the table of mounts", readings.local)
    table = [
        filesystem.Mount(device, point, "" if "/" in device else device)
        for point, device in local.devices.items()
    ]
    wanted = filesystem.select(table, _FOREIGN_NOT_REAL, _FOREIGN_MOUNTS)
    found = {point: _space(readings, local, point) for point in wanted}
    return {point: reading for point, reading in found.items() if reading is not None}


def _space(readings: Readings, spaces: Spaces | None, point: str) -> Reading | Failure | None:
    if spaces is None:
        return Failure("the probe did not ask for it" if readings.is_complete else _CUT)
    space = spaces.by_mount.get(point)
    if space is None:
        return Failure(spaces.problem)
    try:
        return filesystem.parse(space)
    except NoData:
        return None
