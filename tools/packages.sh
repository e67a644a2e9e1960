#!/bin/sh
# Install the Debian packages that the checks and tests need and that are missing here.
#
#   tools/packages.sh          for the checks and tests
#   tools/packages.sh lab      + for machines of a lab, as for root anyway
#
# As root or with a sudo that asks nothing; otherwise this says what to install and goes on, because
# what needs the missing part is then skipped. Under CI=true a missing part is a failure.
set -eu

cd "$(dirname "$0")/.."
. tools/python.sh

purpose=${1:-tests}
missing=

need() {
    missing="$missing $1"
}

has_command() {
    # Servers live where the path of an ordinary user does not lead.
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1
}

has_package() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q ' installed$'
}

list_missing() {
    has_command mariadbd || need mariadb-server
    has_command gcc || need gcc
    has_command pkg-config || need pkg-config
    has_package libmariadb-dev || pkg-config --exists libmariadb 2>/dev/null || need libmariadb-dev
    has_command faketime || need faketime
    has_command npm || need npm
    has_command shellcheck || need shellcheck
    has_command busybox || need busybox
    has_command strace || need strace
    has_command ssh || need openssh-client
    # On a machine in use it would begin to listen: only where nothing is started, or on CI.
    has_command sshd || { [ -d /run/systemd/system ] && [ "${CI:-}" != true ]; } || need openssh-server
    has_command ip || need iproute2
    has_command iptables || need iptables
    # Machines of a lab take root, so the tests on some are for who is root.
    if [ "$purpose" = lab ] || [ "$(id -u)" = 0 ]; then
        has_command debootstrap || need debootstrap
        has_command systemd-nspawn || need systemd-container
    fi
    find_python || return
    has_venv || need "$(debian_part venv)"
    "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        need "$(debian_part dev)"
}

give_up() {
    echo "packages: $1" >&2
    [ "${CI:-}" != true ] || exit 1
    echo "packages: going on; what needs them is skipped" >&2
    exit 0
}

if ! is_debian; then
    echo "packages: not a Debian system: the tests use what is here of" \
        "mariadbd, the MariaDB client headers, a C compiler, faketime, npm, shellcheck, strace," \
        "OpenSSH, iproute2 and iptables" >&2
    exit 0
fi

list_missing
# Word splitting is wanted, here and below: it drops the blanks of names that are not Debian's.
# shellcheck disable=SC2086
set -- $missing
[ $# -gt 0 ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        give_up "missing here; run: sudo apt-get install --no-install-recommends $*"
    fi
    sudo='sudo -n'
fi

apt_get() {
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >>"$log" 2>&1
}

echo "packages: installing $*"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# An update takes longer than the installation: only when the lists at hand do not suffice.
if ! apt_get install -y --no-install-recommends "$@"; then
    if ! { apt_get update && apt_get install -y --no-install-recommends "$@"; }; then
        tail -n 20 "$log" >&2
        give_up "apt-get could not install: $*"
    fi
fi
