"""Fixtures that several of the collector's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.store.schema import upgrade
from collector.store.store import Store, open_store
from tests.collector.cli_inside import Cli, make_cli


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """collector-cli on a fresh database, once of each kind."""
    return make_cli(database_url, monkeypatch, capsys)


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """An open store on SQLite alone, with the current schema."""
    store = open_store(f"sqlite:///{tmp_path}/fleet.db", pool_size=4, create=True)
    upgrade(store, lambda: 0)
    yield store
    store.close()
