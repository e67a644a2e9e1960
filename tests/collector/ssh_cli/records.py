"""What collector-cli ssh has stored, and short ways to ask for it."""

from __future__ import annotations

import asyncssh

from collector.store.ssh_hosts import (
    SshHost,
    load_ssh_hosts,
    load_version,
)
from collector.store.ssh_known_hosts import load_known_hosts
from collector.store.store import Store
from tests.collector.cli_inside import Cli, Ran
from tests.ssh_server import SshServer


def add(cli: Cli, name: str, server: SshServer, *more: str) -> Ran:
    return cli("ssh", "add", name, "--address", "127.0.0.1", "--port", str(server.port), *more)


def stored(store: Store) -> dict[str, SshHost]:
    with store.transaction(write=False) as tx:
        return {one.name: one for one in load_ssh_hosts(tx)}


def lines(store: Store) -> list[str]:
    with store.transaction(write=False) as tx:
        return load_known_hosts(tx)


def version(store: Store) -> str:
    with store.transaction(write=False) as tx:
        return load_version(tx)


def kinds(cli: Cli) -> list[str]:
    return [f"{event['kind']} {event['hostname']}" for event in cli("events", "--json").json["events"]]


def public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode().split()[:2])
