"""Space and inodes of every mounted filesystem that really stores something."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import psutil

from agent.checks import CheckOptions, InstanceCheck, NoData, check
from agent.outcome import Values
from fleetpulse.model import Measurement

_LIMIT = Measurement("system.filesystem.limit", "By")
_USED = Measurement("system.filesystem.usage{system.filesystem.state=used}", "By")
_FREE = Measurement("system.filesystem.usage{system.filesystem.state=free}", "By")
_UTILIZATION = Measurement("system.filesystem.utilization", "1")
_INODES = Measurement("system.filesystem.inodes.utilization", "1")

# What lives in memory, shows kernel state, is always full (images), or shows another one's space.
_NOT_REAL = (
    *("autofs", "binfmt_misc", "bpf", "cgroup*", "configfs", "debugfs", "devfs", "devpts", "devtmpfs"),
    *("efivarfs", "fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "fusectl", "hugetlbfs", "mqueue"),
    *("nsfs", "proc", "pstore", "ramfs", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs"),
    *("tmpfs", "tracefs", "erofs", "fuse.snapfuse", "iso9660", "squashfs", "udf", "aufs", "overlay"),
)
_CONTAINERS = (
    *("/run/user/*", "/snap/*", "/var/snap/*", "/var/lib/docker/*", "/var/lib/containers/*"),
    *("/var/lib/containerd/*", "/run/containerd/*", "/var/lib/kubelet/pods/*", "/dev/*", "/proc/*", "/sys/*"),
)
_NETWORK = ("nfs*", "cifs", "smb*", "ceph", "glusterfs", "lustre", "afs", "9p", "gpfs", "beegfs*", "fuse.*")


class FilesystemOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which mounts are left out. The root filesystem is never left out for its type."""

    exclude_types: tuple[str, ...] = _NOT_REAL
    """Patterns of filesystem types, as in /proc/mounts."""
    exclude_mounts: tuple[str, ...] = _CONTAINERS
    """Patterns of mount points; * matches slashes, too."""


class Mount(NamedTuple):
    """One line of the mount table."""

    device: str
    mountpoint: str
    fstype: str


@check("filesystem", FilesystemOptions)
class Filesystem(InstanceCheck):
    """An instance per filesystem, named after its mount point."""

    def __init__(self, options: FilesystemOptions) -> None:
        self.options = options

    def discover(self) -> Iterable[str]:
        """The mount points; the kernel's table has them, so none is touched and none can hang."""
        partitions = psutil.disk_partitions(all=True)
        return select([Mount(p.device, p.mountpoint, p.fstype) for p in partitions], self.options)

    def measure(self, instance: str, now: float) -> Values:  # noqa: ARG002 - nothing here is a rate
        """Space and inodes of one mount; hangs while its disk or server does."""
        return parse(os.statvfs(instance))


def select(mounts: Sequence[Mount], options: FilesystemOptions) -> list[str]:
    """The mount points to measure, local ones first.

    Of several mounts on one point the last is visible. Of several points of one device (bind mounts,
    subvolumes) the shortest stands for all, as they share their space: one full disk, one alarm.
    """
    visible = {mount.mountpoint: mount for mount in mounts}
    by_device: dict[tuple[str, str], Mount] = {}
    for mount in sorted(visible.values(), key=lambda mount: (len(mount.mountpoint), mount.mountpoint)):
        if _is_wanted(mount, options):
            by_device.setdefault((mount.fstype, mount.device), mount)
    # sorted() is stable: the shortest mount point stays first among equals.
    return [m.mountpoint for m in sorted(by_device.values(), key=lambda m: _matches(m.fstype, _NETWORK))]


def parse(status: os.statvfs_result) -> Values:
    """Use as `df` computes it: used / (used + available to users), so that 1 is full for users.

    Raises NoData for a filesystem that has no size.
    """
    if status.f_blocks <= 0:
        raise NoData
    used = status.f_blocks - status.f_bfree
    usable = used + status.f_bavail
    values = {
        _LIMIT: float(status.f_blocks * status.f_frsize),
        _USED: float(used * status.f_frsize),
        _FREE: float(status.f_bavail * status.f_frsize),
        _UTILIZATION: used / usable if usable > 0 else 1.0,
    }
    if status.f_files > 0:  # btrfs and others have no fixed number of inodes
        values[_INODES] = 1 - status.f_ffree / status.f_files
    return values


def _is_wanted(mount: Mount, options: FilesystemOptions) -> bool:
    if _matches(mount.mountpoint, options.exclude_mounts):
        return False
    return mount.mountpoint == "/" or not _matches(mount.fstype, options.exclude_types)


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)
