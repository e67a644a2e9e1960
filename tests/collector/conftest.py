"""Fixtures that several of the collector's tests share."""

from __future__ import annotations

import pytest

from tests.collector.cli_inside import Cli, make_cli


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """collector-cli on a fresh database, once of each kind."""
    return make_cli(database_url, monkeypatch, capsys)
