"""An inventory in a file, or on standard input."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from collector.cli.inventory import InventoryError, Machine, parse_inventory, parse_machines
from collector.cli.session import CliError


def read_inventory(path: Path) -> Mapping[str, Machine]:
    """The machines; - is standard input. Raises CliError."""
    text = _read(path)
    try:
        return parse_machines(text)
    except InventoryError as error:
        raise CliError(f"{_name(path)}: {error}") from None


def read_names(path: Path) -> dict[str, tuple[str, ...]]:
    """The same as groups by names, all of which can be files' names. Raises CliError."""
    text = _read(path)
    try:
        return parse_inventory(text)
    except InventoryError as error:
        raise CliError(f"{_name(path)}: {error}") from None


def _read(path: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return data.decode()
    except OSError as error:
        raise CliError(f"cannot read {_name(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CliError(f"{_name(path)}: is not UTF-8") from None


def _name(path: Path) -> str:
    return "standard input" if str(path) == "-" else str(path)
