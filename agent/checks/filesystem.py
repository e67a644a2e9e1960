"""Space and inodes of every mounted filesystem that really stores something."""

from __future__ import annotations

import os
from collections.abc import Iterable

import psutil

from agent.checks import CheckOptions, InstanceCheck, check
from fleetpulse.machine.filesystem import CONTAINERS, NOT_REAL, Mount, parse, select
from fleetpulse.outcome import Values


class FilesystemOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which mounts are left out. The root filesystem is never left out for its type."""

    exclude_types: tuple[str, ...] = NOT_REAL
    """Patterns of filesystem types, as in /proc/mounts."""
    exclude_mounts: tuple[str, ...] = CONTAINERS
    """Patterns of mount points; * matches slashes, too."""


@check("filesystem", FilesystemOptions)
class Filesystem(InstanceCheck):
    """An instance per filesystem, named after its mount point."""

    def __init__(self, options: FilesystemOptions) -> None:
        self.options = options

    def discover(self) -> Iterable[str]:
        """The mount points; the kernel's table has them, so none is touched and none can hang."""
        partitions = psutil.disk_partitions(all=True)
        mounts = [Mount(p.device, p.mountpoint, p.fstype) for p in partitions]
        return select(mounts, self.options.exclude_types, self.options.exclude_mounts)

    def measure(self, instance: str, now: float) -> Values:  # noqa: ARG002 - nothing here is a rate
        """Space and inodes of one mount; hangs while its disk or server does."""
        return parse(os.statvfs(instance))
