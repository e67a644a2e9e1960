from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from agent.checks.filesystem import Filesystem, FilesystemOptions
from fleetpulse.machine.filesystem import Mount, parse, select
from fleetpulse.model import Measurement
from fleetpulse.outcome import NoData

LIMIT = Measurement("system.filesystem.limit", "By")
USED = Measurement("system.filesystem.usage{system.filesystem.state=used}", "By")
FREE = Measurement("system.filesystem.usage{system.filesystem.state=free}", "By")
UTILIZATION = Measurement("system.filesystem.utilization", "1")
INODES = Measurement("system.filesystem.inodes.utilization", "1")
DEFAULT = FilesystemOptions()


def status(**change: int) -> SimpleNamespace:
    fields = {"f_frsize": 4096, "f_bsize": 1 << 20, "f_blocks": 1000, "f_bfree": 500, "f_bavail": 450}
    return SimpleNamespace(**(fields | {"f_files": 100, "f_ffree": 75, "f_favail": 75} | change))


def test_use_as_df_computes_it():
    assert parse(status()) == {
        LIMIT: 4_096_000,
        USED: 2_048_000,
        FREE: 450 * 4096,
        UTILIZATION: 500 / 950,
        INODES: 0.25,
    }


def test_full_for_users_is_full():
    assert parse(status(f_bfree=50, f_bavail=0))[UTILIZATION] == 1
    assert parse(status(f_bfree=1000, f_bavail=0))[UTILIZATION] == 1


def test_a_filesystem_without_a_fixed_number_of_inodes():
    assert INODES not in parse(status(f_files=0, f_ffree=0))


def test_a_filesystem_without_a_size_is_left_out():
    with pytest.raises(NoData):
        parse(status(f_blocks=0, f_bfree=0, f_bavail=0))


def test_only_what_really_stores_something():
    mounts = [
        Mount("proc", "/proc", "proc"),
        Mount("sysfs", "/sys", "sysfs"),
        Mount("udev", "/dev", "devtmpfs"),
        Mount("tmpfs", "/run", "tmpfs"),
        Mount("/dev/sda2", "/", "ext4"),
        Mount("/dev/sda1", "/boot/efi", "vfat"),
        Mount("/dev/md0", "/srv", "xfs"),
        Mount("tank/home", "/home", "zfs"),
        Mount("/dev/sdb1", "/backup", "btrfs"),
        Mount("/dev/loop3", "/snap/core/1", "squashfs"),
        Mount("/dev/sr0", "/media/cd", "iso9660"),
        Mount("overlay", "/var/lib/docker/overlay2/1/merged", "overlay"),
        Mount("/dev/sdc1", "/var/lib/kubelet/pods/1/volumes/x", "ext4"),
        Mount("cgroup2", "/sys/fs/cgroup", "cgroup2"),
        Mount("/etc/auto.home", "/net", "autofs"),
        Mount("server:/export", "/mnt/nfs", "nfs4"),
        Mount("//server/share", "/mnt/cifs", "cifs"),
    ]
    assert set(select(mounts)) == {
        *("/", "/boot/efi", "/srv", "/home", "/backup", "/mnt/nfs", "/mnt/cifs"),
    }


def test_local_filesystems_come_first_as_they_hang_least():
    mounts = [
        Mount("s:/a", "/a", "nfs4"),
        Mount("/dev/sda1", "/longer/path", "ext4"),
        Mount("o", "/", "overlay"),
    ]
    assert select(mounts) == ["/", "/longer/path", "/a"]


def test_the_root_is_kept_whatever_its_type():
    assert select([Mount("overlay", "/", "overlay"), Mount("tmpfs", "/tmp", "tmpfs")]) == ["/"]


def test_the_visible_one_of_several_on_one_mount_point():
    mounts = [Mount("/dev/sda1", "/data", "ext4"), Mount("tmpfs", "/data", "tmpfs")]
    assert select(mounts) == []
    assert select([*reversed(mounts)]) == ["/data"]


def test_one_row_for_the_same_space_mounted_twice():
    mounts = [
        Mount("/dev/sda1", "/var/lib/bind", "ext4"),
        Mount("/dev/sda1", "/srv", "ext4"),
        Mount("/dev/sdb1", "/home", "btrfs"),
        Mount("/dev/sdb1", "/.snapshots", "btrfs"),
    ]
    assert select(mounts) == ["/srv", "/home"]


def test_options_replace_the_defaults():
    mounts = [
        Mount("/dev/sda1", "/data", "ext4"),
        Mount("tmpfs", "/run", "tmpfs"),
        Mount("/dev/sdb1", "/media/me/usb", "vfat"),
        Mount("/dev/sdc1", "/", "ext4"),
    ]
    assert select(mounts, exclude_types=("ext*",), exclude_mounts=("/media/*",)) == ["/", "/run"]


def test_a_mount_point_excluded_by_name_is_left_out_even_if_it_is_the_root():
    assert select([Mount("/dev/sda1", "/", "ext4")], exclude_mounts=("/",)) == []


def test_this_machine_agrees_with_df():
    check = Filesystem(DEFAULT)
    mounts = list(check.discover())
    assert "/" in mounts
    for mount in mounts:
        values = check.measure(mount, 0.0)
        size, used, available, percent, inodes = df(mount)
        assert values[LIMIT] == size
        slack = max(size * 0.002, 64 << 20)  # others write while this runs
        assert values[USED] == pytest.approx(used, abs=slack)
        assert values[FREE] == pytest.approx(available, abs=slack)
        # df rounds up to whole percents.
        assert percent - 1.5 <= values[UTILIZATION] * 100 <= percent + 0.5
        if inodes is not None:
            assert inodes - 1.5 <= values[INODES] * 100 <= inodes + 0.5


def test_a_mount_that_went_away_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Filesystem(DEFAULT).measure(str(tmp_path / "gone"), 0.0)


def df(mount: str) -> tuple[float, float, float, float, float | None]:
    output = subprocess.run(
        ["df", "-B1", "--output=size,used,avail,pcent,ipcent", mount],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"LC_ALL": "C"},
    ).stdout
    size, used, available, percent, inodes = output.splitlines()[1].split()
    share = float(inodes.rstrip("%")) if inodes != "-" else None
    return float(size), float(used), float(available), float(percent.rstrip("%")), share
