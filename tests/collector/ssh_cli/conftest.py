"""Fixtures for the tests of collector-cli ssh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.store.store import Store
from tests.collector.cli_inside import Cli
from tests.collector.fleet import Fleet
from tests.collector.ssh_cli.records import add
from tests.ssh_server import SshServer


@pytest.fixture
def fleet(store: Store) -> Fleet:
    return Fleet(store)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[SshServer, SshServer]]:
    """Two machines that let the same key in."""
    with SshServer(tmp_path, b"nothing\n") as one, SshServer(tmp_path, b"nothing\n") as two:
        two.client_key = one.client_key
        one.client_key.write_private_key(one.key_file)
        one.key_file.chmod(0o600)
        yield one, two


@pytest.fixture
def server(
    servers: tuple[SshServer, SshServer], monkeypatch: pytest.MonkeyPatch, fleet: Fleet, cli: Cli
) -> SshServer:
    """A machine that is polled as web-1."""
    monkeypatch.setenv("FLEETPULSE_SSH_KEYS", str(servers[0].key_file))
    assert add(cli, "web-1", servers[0]).status == 0
    return servers[0]
