# shellcheck shell=sh
# Remove the collector, and unless they are to be kept its keys and its SQLite database. In: keep
# (data if not empty), and remove.sh.
set -eu
unit=fleetpulse-collector.service

[ ! -e /etc/systemd/system/$unit ] || systemctl --quiet disable --now $unit
remove /etc/systemd/system/$unit /etc/systemd/system/$unit.d /opt/fleetpulse/collector /usr/local/bin/collector-cli \
    /etc/fleetpulse/collector.toml /etc/fleetpulse/rules.toml
for archive in /opt/fleetpulse-collector-*.tar.gz; do remove "$archive"; done
if [ -z "${keep:-}" ]; then
    remove /var/lib/fleetpulse /etc/fleetpulse/ssh.key /etc/fleetpulse/ssh.key.pub \
        /etc/fleetpulse/database.password /etc/fleetpulse/upgrade.password
    remove_account fleetpulse /var/lib/fleetpulse
fi
for folder in /opt/fleetpulse /etc/fleetpulse; do
    [ ! -d $folder ] || rmdir $folder 2>/dev/null || true
done
systemctl daemon-reload
systemctl reset-failed $unit 2>/dev/null || true
