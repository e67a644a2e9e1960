#!/bin/sh
# Run one machine of the lab until it is powered off: tests/lab/machines.py starts this.
#
#   tests/lab/machine.sh ROOTFS FOLDER NAME HOSTNAME NAMESPACE FREEZER [OPTION OF SYSTEMD-NSPAWN...]
#
# In a mount namespace of its own, so that the machine's disk is unmounted when its last process is gone.
set -eu

rootfs=$1 folder=$2 name=$3 hostname=$4 namespace=$5 groups=$6
shift 6

for group in $groups; do echo $$ >"$group/cgroup.procs"; done
mount -t overlay -o "lowerdir=$rootfs,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"

link() {
    nsenter --net="$namespace" ip link set eth0 "$1"
}

# systemd sets limits in the groups that it can write to, and nspawn leaves it only its own hierarchy.
# shellcheck disable=SC2016
init='for group in memory pids cpu cpuacct; do
    [ ! -d /sys/fs/cgroup/$group ] || mount -o remount,rw,bind /sys/fs/cgroup/$group
done
exec /lib/systemd/systemd'

while :; do
    link up
    code=0
    systemd-nspawn -q -D "$folder/root" -M "$name" --hostname="$hostname" --kill-signal=SIGRTMIN+3 \
        --register=no --keep-unit --network-namespace-path="$namespace" --resolv-conf=off --timezone=off \
        --link-journal=no --console=pipe "$@" /bin/sh -c "$init" || code=$?
    # Without a kernel of its own it would still answer to who connects.
    link down
    # 133 is how nspawn says that the machine wants to boot again.
    [ $code = 133 ] || exit $code
done
