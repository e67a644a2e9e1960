"""An inventory in a file, or on standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from collector.cli.inventory import InventoryError, Machine, parse_ansible, parse_inventory, parse_machines
from collector.cli.session import CliError

Machines = TypeVar("Machines")


def read_inventory(path: Path) -> Mapping[str, Machine]:
    """The machines; - is standard input. Raises CliError."""
    return _parsed(path, parse_machines)


def read_ansible(path: Path) -> Mapping[str, Machine]:
    """The machines of the JSON of ansible-inventory --list; - is standard input. Raises CliError."""
    return _parsed(path, parse_ansible)


def read_names(path: Path) -> dict[str, tuple[str, ...]]:
    """The groups of each machine, whose names can be files' names; - is standard input. Raises CliError."""
    return _parsed(path, parse_inventory)


def _parsed(path: Path, parse: Callable[[str], Machines]) -> Machines:
    text = _read(path)
    try:
        return parse(text)
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
