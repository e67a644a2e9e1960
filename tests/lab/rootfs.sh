#!/bin/sh
# Make the root filesystem that all machines of the lab share, once: a minute, 400 MB, as root.
#
#   tests/lab/rootfs.sh FOLDER
set -eu

folder=${1:?usage: tests/lab/rootfs.sh FOLDER}
mirror=${LAB_MIRROR:-http://deb.debian.org/debian}
include=systemd,systemd-sysv,openssh-server,python3,python3-venv,python3-packaging,sudo,iproute2,dbus,procps

# The machines run the checkout's own interpreter, so they want the C library that it was built for.
suite=bookworm
[ ! -r /etc/os-release ] || suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME" || echo bookworm)

half=$folder.half
log=$folder.log
rm -rf --one-file-system "$half"
mkdir -p "$half"
if ! debootstrap --variant=minbase --include=$include "$suite" "$half" "$mirror" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi

# Each machine has its own name, keys and machine-id, made when it is set up.
rm -f "$half"/etc/ssh/ssh_host_* "$half/etc/hostname" "$half/var/lib/dbus/machine-id"
: >"$half/etc/machine-id"

# What a machine may be told to install: it reaches no registry, so the packages are in a folder of its own.
packages=$half/srv/packages
mkdir -p "$packages/partial"
chroot "$half" apt-get -qq update >>"$log" 2>&1
chroot "$half" apt-get -qq install --yes --no-install-recommends --download-only -o Dir::Cache::archives=/srv/packages \
    mariadb-server libmariadb3 python3-apt </dev/null >>"$log" 2>&1
for deb in "$packages"/*.deb; do
    dpkg-deb --field "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$(basename "$deb")" "$(stat -c %s "$deb")" \
        "$(sha256sum "$deb" | cut -d' ' -f1)"
done >"$packages/Packages"
echo 'deb [trusted=yes] file:/srv/packages ./' >"$half/etc/apt/sources.list"
rm -rf "$half"/var/cache/apt/archives/*.deb "$half"/var/lib/apt/lists/*
chroot "$half" apt-get -qq update >>"$log" 2>&1

chroot "$half" useradd --create-home --shell /bin/bash --groups systemd-journal,sudo admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' >"$half/etc/sudoers.d/admin"
chmod 440 "$half/etc/sudoers.d/admin"
chroot "$half" systemctl -q enable ssh.service
# What waits for hardware and for networks that a machine of the lab does not have.
chroot "$half" systemctl -q mask systemd-networkd-wait-online.service getty@.service console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer

rm -rf --one-file-system "$folder"
mv "$half" "$folder"
