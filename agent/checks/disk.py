"""What every physical disk does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from agent.checks import CheckOptions, TableCheck, check
from fleetpulse.machine.disk import REMOVABLE, at_most_all_the_time, parse, select
from fleetpulse.machine.rates import TableRates
from fleetpulse.outcome import Values

_BLOCK_DEVICES = Path("/sys/block")


class DiskOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which disks are left out."""

    exclude: tuple[str, ...] = REMOVABLE
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
        names = select(self._physical, self._exclude)
        table = {name: parse(counters[name]._asdict()) for name in names}
        return {name: at_most_all_the_time(values) for name, values in self._rates.update(now, table).items()}


def is_physical(block_devices: Path, name: str) -> bool:
    """Whether a device has hardware (or a hypervisor) behind it: loops, RAID and LVM have not.

    `block_devices` is /sys/block, which has no partitions.
    """
    # A slash in a name (cciss/c0d0) is an exclamation mark in sysfs.
    return (block_devices / name.replace("/", "!") / "device").exists()
