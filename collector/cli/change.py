"""What the commands have in common that change what is stored: ask first, and try again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

import click

from collector.cli.session import CliError
from collector.core.render import escape
from collector.store.collectors import load_listening
from collector.store.errors import StoreConflict
from collector.store.store import Store, Transaction

Result = TypeVar("Result")

_TRIES = 5  # a collector that writes the same host at that moment wins once, not for ever

yes_option = click.option(
    "--yes", is_flag=True, help="Do not ask. Needed when nobody is at a terminal to be asked."
)


def ask(question: str, about: Iterable[str]) -> None:
    """Go on only if somebody at a terminal says yes to `question`, shown below the lines `about` it.

    Raises CliError for a no, and if nobody is there.
    """
    require_somebody()
    for text in about:
        click.echo(f"  {escape(text)}", err=True)
    if not click.confirm(escape(question), err=True):
        raise CliError("nothing was changed")


def require_somebody() -> None:
    """Raises CliError if nobody is at a terminal to be asked."""
    if not sys.stdin.isatty():
        raise CliError("nobody at a terminal to be asked; add --yes")


def change(store: Store, write: Callable[[Transaction, int], Result]) -> Result:
    """What `write`, called with the collectors' time, returns from one transaction; again if others interfere.

    Raises StoreConflict if they always do.
    """
    for _ in range(_TRIES - 1):
        try:
            return _once(store, write)
        except StoreConflict:
            continue
    return _once(store, write)


def _once(store: Store, write: Callable[[Transaction, int], Result]) -> Result:
    with store.transaction() as tx:
        return write(tx, load_listening(tx).now)
