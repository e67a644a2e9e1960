"""What every physical disk does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from fleetpulse.model import Measurement
from fleetpulse.outcome import Values

_IO_TIME = Measurement("system.disk.io_time", "s/s")
_READ_BYTES = Measurement("system.disk.io{disk.io.direction=read}", "By/s")
_WRITE_BYTES = Measurement("system.disk.io{disk.io.direction=write}", "By/s")
_READS = Measurement("system.disk.operations{disk.io.direction=read}", "{operation}/s")
_WRITES = Measurement("system.disk.operations{disk.io.direction=write}", "{operation}/s")

REMOVABLE = ("fd[0-9]*", "sr[0-9]*")


def select(names: Iterable[str], exclude: tuple[str, ...] = REMOVABLE) -> list[str]:
    """The devices that none of the patterns in `exclude` matches."""
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in exclude)]


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
