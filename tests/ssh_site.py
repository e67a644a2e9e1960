"""Hosts without an agent for a site's collector: their records, settings and trusted keys."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from collector.core.ssh_settings import SshSettings
from collector.core.status import HostRecord
from collector.store import ssh_hosts, ssh_known_hosts
from collector.store.hosts import add_hosts, assign_groups, find_hosts
from tests.processes import Site
from tests.ssh_server import SshServer


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def add_polled(
    site: Site,
    server: SshServer,
    hosts: Mapping[str, str],
    *,
    trust: bool = True,
    group: str = "",
    **settings: object,
) -> None:
    """Have these hosts polled, given as name and address, each on the server's port. In a transaction of their own."""
    own = {"port": server.port, "user": "monitor", "interval": 1_000, "timeout": 3_000, **settings}
    records = [
        HostRecord(
            str(uuid.uuid4()), name, "", "", "", "", int(str(own["interval"])), 3 * int(str(own["interval"]))
        )
        for name in hosts
    ]
    key = server.host_key.export_public_key().decode().strip()
    store = site.open_store()
    with store.transaction() as tx:
        add_hosts(tx, records, now_ms())
        stored = find_hosts(tx, [record.host_id for record in records])
        for record in records:
            host = stored[record.host_id].host
            mine = SshSettings(address=hosts[record.hostname], **own)  # type: ignore[arg-type]
            ssh_hosts.save_ssh_host(tx, host, mine, polled=True)
            if group:
                assign_groups(tx, host, [group])
        if trust:
            ssh_known_hosts.add_known_hosts(tx, [f"{name} {key}" for name in hosts], now_ms())
        ssh_hosts.note_change(tx)
    store.close()


def trust(site: Site, name: str, server: SshServer) -> None:
    """Trust a server's key under that name, and no other that was known before."""
    key = server.host_key.export_public_key().decode().strip()
    store = site.open_store()
    with store.transaction() as tx:
        old = [line for line in ssh_known_hosts.load_known_hosts(tx) if line.split()[0] == name]
        ssh_known_hosts.forget_known_hosts(tx, old)
        ssh_known_hosts.add_known_hosts(tx, [f"{name} {key}"], now_ms())
        ssh_hosts.note_change(tx)
    store.close()
