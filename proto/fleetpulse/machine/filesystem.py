"""Space and inodes of every mounted filesystem that really stores something."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from fleetpulse.model import Measurement
from fleetpulse.outcome import NoData, Values

_LIMIT = Measurement("system.filesystem.limit", "By")
_USED = Measurement("system.filesystem.usage{system.filesystem.state=used}", "By")
_FREE = Measurement("system.filesystem.usage{system.filesystem.state=free}", "By")
_UTILIZATION = Measurement("system.filesystem.utilization", "1")
_INODES = Measurement("system.filesystem.inodes.utilization", "1")

# What lives in memory, shows kernel state, is always full (images), or shows another one's space.
NOT_REAL = (
    *("autofs", "binfmt_misc", "bpf", "cgroup*", "configfs", "debugfs", "devfs", "devpts", "devtmpfs"),
    *("efivarfs", "fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "fusectl", "hugetlbfs", "mqueue"),
    *("nsfs", "proc", "pstore", "ramfs", "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs"),
    *("tmpfs", "tracefs", "erofs", "fuse.snapfuse", "iso9660", "squashfs", "udf", "aufs", "overlay"),
)
CONTAINERS = (
    *("/run/user/*", "/snap/*", "/var/snap/*", "/var/lib/docker/*", "/var/lib/containers/*"),
    *("/var/lib/containerd/*", "/run/containerd/*", "/var/lib/kubelet/pods/*", "/dev/*", "/proc/*", "/sys/*"),
)
NETWORK = ("nfs*", "cifs", "smb*", "ceph", "glusterfs", "lustre", "afs", "9p", "gpfs", "beegfs*", "fuse.*")


class Mount(NamedTuple):
    """One line of the mount table."""

    device: str
    mountpoint: str
    fstype: str


class Space(Protocol):
    """The fields of `man 3 statvfs`, in blocks of `f_frsize` bytes."""

    @property
    def f_frsize(self) -> int: ...  # noqa: D102 - man 3 statvfs
    @property
    def f_blocks(self) -> int: ...  # noqa: D102
    @property
    def f_bfree(self) -> int: ...  # noqa: D102
    @property
    def f_bavail(self) -> int: ...  # noqa: D102
    @property
    def f_files(self) -> int: ...  # noqa: D102
    @property
    def f_ffree(self) -> int: ...  # noqa: D102


def select(
    mounts: Sequence[Mount],
    exclude_types: tuple[str, ...] = NOT_REAL,
    exclude_mounts: tuple[str, ...] = CONTAINERS,
) -> list[str]:
    """The mount points to measure, local ones first.

    Of several mounts on one point the last is visible. Of several points of one device (bind mounts,
    subvolumes) the shortest stands for all, as they share their space: one full disk, one alarm.
    """
    visible = {mount.mountpoint: mount for mount in mounts}
    by_device: dict[tuple[str, str], Mount] = {}
    for mount in sorted(visible.values(), key=lambda mount: (len(mount.mountpoint), mount.mountpoint)):
        if _is_wanted(mount, exclude_types, exclude_mounts):
            by_device.setdefault((mount.fstype, mount.device), mount)
    # sorted() is stable: the shortest mount point stays first among equals.
    return [m.mountpoint for m in sorted(by_device.values(), key=lambda m: is_network(m.fstype))]


def parse(status: Space) -> Values:
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


def is_network(fstype: str) -> bool:
    """Whether a filesystem of this type hangs when another machine, or a process, does."""
    return _matches(fstype, NETWORK)


def _is_wanted(mount: Mount, exclude_types: tuple[str, ...], exclude_mounts: tuple[str, ...]) -> bool:
    if _matches(mount.mountpoint, exclude_mounts):
        return False
    return mount.mountpoint == "/" or not _matches(mount.fstype, exclude_types)


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)
