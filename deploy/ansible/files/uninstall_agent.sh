# shellcheck shell=sh
# Remove the agent and what the collector was let in by; by any sh, as root, without Python. In: keep
# (data if not empty), and remove.sh.
set -eu
unit=fleetpulse-agent.service

if [ -d /run/systemd/system ] && [ -e /etc/systemd/system/$unit ]; then
    systemctl --quiet disable --now $unit
fi
remove /etc/systemd/system/$unit /etc/systemd/system/$unit.d /opt/fleetpulse/agent /opt/fleetpulse/probe \
    /etc/fleetpulse/agent.toml
for archive in /opt/fleetpulse-agent-*.tar.gz; do remove "$archive"; done
if [ -z "${keep:-}" ]; then
    remove /var/lib/fleetpulse-agent
    # Files that stay belong to the account.
    remove_account fleetpulse-agent /var/lib/fleetpulse-agent
fi
remove_account fleetpulse-probe /opt/fleetpulse/probe
# As far as nothing else is in them, such as a collector.
for folder in /opt/fleetpulse /etc/fleetpulse; do
    [ ! -d $folder ] || rmdir $folder 2>/dev/null || true
done
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl reset-failed $unit 2>/dev/null || true
fi
