# shellcheck shell=sh
# What there is on this machine, a line each; run by any sh, as root, without Python. Nothing is changed.
# In: program (agent or collector).
: "${program:?}"

# Interpreters in somebody's home are not for a service.
PATH=/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin
home=/opt/fleetpulse
state=/var/lib/fleetpulse-agent

echo "system=$(uname -s)"
echo "arch=$(uname -m)"
[ ! -d /run/systemd/system ] || echo "systemd=$(systemctl --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9]*\).*/\1/p')"
echo "glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')"

# An interpreter that can hold a release, by its version: python311=/usr/bin/python3.11
tried='import sys, ssl, sqlite3, venv; print("%d%d" % sys.version_info[:2])'
newest='' pythons=''
for name in python3.9 python3 python3.10 python3.11 python3.12 python3.13 python3.14; do
    path=$(command -v $name) || continue
    version=$("$path" -I -c "$tried" 2>/dev/null) || continue
    newest=$version
    case $version in
    31[1-9])
        pythons="$pythons $version"
        echo "python$version=$path"
        ;;
    esac
done
echo "newest=$newest"
echo "pythons=$pythons"

[ ! -L "$home/$program/current" ] || echo "current=$(basename "$(readlink "$home/$program/current")")"
# Those that run: an interpreter may have gone with an upgrade of the distribution.
releases=''
for release in "$home/$program"/releases/*; do
    if "$release/bin/python" -I -c '' 2>/dev/null; then releases="$releases $(basename "$release")"; fi
done
echo "releases=$releases"
echo "active=$(systemctl is-active "fleetpulse-$program" 2>/dev/null)"
echo "enabled=$(systemctl is-enabled "fleetpulse-$program" 2>/dev/null)"
# A switch that was cut short, and settings that are newer than the service's last start.
[ ! -s "$home/$program/unjudged" ] || echo "unjudged=yes"
newer=$(find "/etc/fleetpulse/$program.toml" "/etc/systemd/system/fleetpulse-$program.service.d" \
    /etc/fleetpulse/database.password -type f -newer "$home/$program/activated" 2>/dev/null)
[ -z "$newer" ] || echo "behind=yes"
# A certificate that the collector has refused for good is none.
[ ! -s $state/host.pem ] || [ -e $state/refused ] || echo "enrolled=yes"
[ ! -d /etc/fleetpulse ] || echo "configured=yes"
config=/etc/fleetpulse/$program.toml
[ ! -r "$config" ] || echo "config=$(sha256sum "$config" | cut -d' ' -f1) $(stat -c %U:%G:%a "$config")"

echo "probe=$(cat $home/probe/probe $home/probe/.ssh/authorized_keys 2>/dev/null | sha256sum 2>/dev/null | cut -d' ' -f1)"
for key in /etc/ssh/ssh_host_*_key.pub; do
    [ ! -r "$key" ] || echo "hostkey_$(basename "$key" | sed 's/^ssh_host_//; s/_key.pub$//')=$(cut -d' ' -f1,2 "$key")"
done
