"""collector-cli run in this process, into a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from collector.cli.main import run

Cli = Callable[..., "Ran"]


class Ran:
    """What a run of collector-cli did."""

    def __init__(self, status: int, out: str, err: str):
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def make_cli(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A function that runs the command line that it is given."""
    monkeypatch.setenv("FLEETPULSE_DATABASE", database_url)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        status = run(list(arguments))
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return call
