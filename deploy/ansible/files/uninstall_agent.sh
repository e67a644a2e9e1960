# shellcheck shell=sh
# Remove the agent and what the collector was let in by; by any sh, as root, without Python. In: keep (data if not empty).
set -eu
unit=fleetpulse-agent.service

remove() {
    for path in "$@"; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            rm -rf "$path"
            echo "removed $path"
        fi
    done
}

# An account in use is not removed, and the collector may be looking at this moment.
remove_account() {
    id -u "$1" >/dev/null 2>&1 || return 0
    for _ in 1 2 3 4 5; do
        for process in /proc/[0-9]*; do
            [ "$(stat -c %U "$process" 2>/dev/null)" != "$1" ] || kill -KILL "${process#/proc/}" 2>/dev/null || true
        done
        if userdel "$1"; then
            echo "removed the account $1"
            return 0
        fi
        sleep 1
    done
    return 1
}

if [ -d /run/systemd/system ] && [ -e /etc/systemd/system/$unit ]; then
    systemctl --quiet disable --now $unit
fi
remove /etc/systemd/system/$unit /etc/systemd/system/$unit.d /opt/fleetpulse/agent /opt/fleetpulse/probe \
    /etc/fleetpulse/agent.toml
for archive in /opt/fleetpulse-agent-*.tar.gz; do remove "$archive"; done
if [ -z "${keep:-}" ]; then
    remove /var/lib/fleetpulse-agent
    # Files that stay belong to the account.
    remove_account fleetpulse-agent
fi
remove_account fleetpulse-probe
# As far as nothing else is in them, such as a collector.
for folder in /opt/fleetpulse /etc/fleetpulse; do
    [ ! -d $folder ] || rmdir $folder 2>/dev/null || true
done
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl reset-failed $unit 2>/dev/null || true
fi
