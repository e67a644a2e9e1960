"""What every physical disk does."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from agent.checks import CheckOptions, TableCheck, check
from agent.checks.rates import TableRates
from agent.outcome import Values
from fleetpulse.model import Measurement

_IO_TIME = Measurement("system.disk.io_time", "s/s")
_READ_BYTES = Measurement("system.disk.io{disk.io.direction=read}", "By/s")
_WRITE_BYTES = Measurement("system.disk.io{disk.io.direction=write}", "By/s")
_READS = Measurement("system.disk.operations{disk.io.direction=read}", "{operation}/s")
_WRITES = Measurement("system.disk.operations{disk.io.direction=write}", "{operation}/s")

_BLOCK_DEVICES = Path("/sys/block")


class DiskOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which disks are left out."""

    exclude: tuple[str, ...] = ("fd[0-9]*", "sr[0-9]*")
    """Patterns of device names such as "sda"."""


@check("disk", DiskOptions)
class Disk(TableCheck):
    """An instance per disk, named after its device; partitions and what is built on disks are not."""

    def __init__(self, options: DiskOptions) -> None:
        self._exclude = options.exclude
        self._rates = TableRates()
        self._devices: frozenset[str] = frozenset()
        self._physical: frozenset[str] = frozenset()

    def measure_all(self, now: float) -> Mapping[str, Values]:
        """Every disk's rates."""
        # nowrap would make psutil add up counters that went backwards instead of showing that.
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False)
        if counters.keys() != self._devices:
            self._devices = frozenset(counters)
            self._physical = frozenset(name for name in counters if is_physical(_BLOCK_DEVICES, name))
        table = {
            name: parse(counters[name]._asdict())
            for name in self._physical
            if not any(fnmatchcase(name, pattern) for pattern in self._exclude)
        }
        return {name: at_most_all_the_time(values) for name, values in self._rates.update(now, table).items()}


def is_physical(block_devices: Path, name: str) -> bool:
    """Whether a device has hardware (or a hypervisor) behind it: loops, RAID and LVM have not.

    `block_devices` is /sys/block, which has no partitions.
    """
    # A slash in a name (cciss/c0d0) is an exclamation mark in sysfs.
    return (block_devices / name.replace("/", "!") / "device").exists()


def parse(fields: Mapping[str, float]) -> dict[Measurement, float]:
    """The counters of one device, from the fields of psutil.disk_io_counters()."""
    return {
        _IO_TIME: fields["busy_time"] / 1000,
        _READ_BYTES: float(fields["read_bytes"]),
        _WRITE_BYTES: float(fields["write_bytes"]),
        _READS: float(fields["read_count"]),
        _WRITES: float(fields["write_count"]),
    }


def at_most_all_the_time(values: Mapping[Measurement, float]) -> Values:
    """A disk is not busy for more than 1 s/s: what is above comes from the kernel's coarser clock."""
    busy = values[_IO_TIME]
    return {**values, _IO_TIME: 1.0 if busy > 1 else busy}
