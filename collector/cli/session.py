"""What every command shares: the configuration, the database, and the way out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from collector.cli.output import Answer, Line, Page, plain, plain_line, to_json
from fleetpulse.model import State

if TYPE_CHECKING:
    from collector.cli.options import Labels
    from collector.config import Loaded
    from collector.store.selection import Selection
    from collector.store.store import Store, Transaction

EXIT_UNKNOWN = State.UNKNOWN.value


class CliError(click.ClickException):
    """What the admin asked for cannot be done; one line says why."""

    exit_code = EXIT_UNKNOWN


class Session:
    """One run of collector-cli."""

    def __init__(self, config_path: Path | None, *, color: bool):
        self._config_path = config_path
        self.color = color and not os.environ.get("NO_COLOR")

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration. Raises ConfigError."""
        from collector import config

        return config.load(self._config_path)

    def open_store(self, *, create: bool = False) -> Store:
        """The configured database, over a single connection. Raises StoreError, ConfigError."""
        from collector.store.store import open_store

        config = self.loaded.config
        return open_store(
            config.database,
            password=self.loaded.database_password,
            pool_size=1,
            pool_timeout=config.pool_timeout,
            create=create,
        )

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The database while the block runs, once its schema is known to be ours."""
        from collector.store.schema import require_known_version

        store = self.open_store()
        try:
            require_known_version(store)
            yield store
        finally:
            store.close()

    @property
    def is_terminal(self) -> bool:
        """Whether somebody is looking."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, page: Page) -> None:
        """Print a page: coloured tables on a terminal, plain columns elsewhere."""
        if self.is_terminal:
            from collector.cli.terminal import show

            show(page, color=self.color)
        else:
            sys.stdout.write(plain(page))

    def show_aside(self, page: Page) -> None:
        """Print a page to standard error, beside what the command answers."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from collector.cli.terminal import show

            show(page, color=self.color, aside=True)
        else:
            sys.stderr.write(plain(page))

    def show_progress(self, text: str) -> None:
        """One line to standard error for whoever waits at a terminal."""
        if sys.stderr.isatty():
            from collector.core.render import escape

            click.echo(escape(text), err=True)

    def show_line(self, line: Line) -> None:
        """Print one line, now."""
        if self.is_terminal:
            self.show([line])
        else:
            sys.stdout.write(f"{plain_line(line)}\n")
        sys.stdout.flush()

    def show_json(self, value: object) -> None:
        """Print one line of JSON; indented on a terminal."""
        sys.stdout.write(f"{to_json(value, indent=2 if self.is_terminal else None)}\n")

    def show_json_line(self, value: object) -> None:
        """Print one value as one line of JSON, now."""
        sys.stdout.write(f"{to_json(value)}\n")
        sys.stdout.flush()

    def answer(self, answer: Answer, *, as_json: bool) -> int:
        """Print an answer; the exit code."""
        if as_json:
            self.show_json(answer.as_json())
        else:
            self.show(answer.page(None))
        return answer.state.value

    def watch(self, look: Callable[[], Answer], interval: float, *, as_json: bool) -> int:
        """Print what `look` finds, again and again, until Ctrl-C; the exit code.

        Redrawn in place on a terminal; elsewhere pages after each other, or one line of JSON each.
        """
        if self.is_terminal and not as_json:
            from collector.cli.terminal import watch

            watch(look, interval, color=self.color)
            return State.OK.value
        try:
            while True:
                self._print_once(look, as_json)
                time.sleep(interval)
        except KeyboardInterrupt:
            return State.OK.value

    def _print_once(self, look: Callable[[], Answer], as_json: bool) -> None:
        from collector.store.errors import StoreUnavailable

        try:
            answer = look()
        except StoreUnavailable as error:
            complain(f"{error}; trying again")
            return
        sys.stdout.write(f"{to_json(answer.as_json())}\n" if as_json else f"{plain(answer.page(None))}\n")
        sys.stdout.flush()


def complain(message: str) -> None:
    """One line to standard error."""
    from collector.core.render import escape

    click.echo(f"collector-cli: {escape(message)}", err=True)


def select(tx: Transaction, groups: tuple[str, ...], labels: Labels) -> Selection:
    """The hosts of these groups with these labels.

    Raises CliError for a group that no host is in, and a label that none has: a misspelt name must not look
    like all is well.
    """
    from collector.store.selection import LabelTerm, Selection, unknown_groups, unknown_labels

    wanted = Selection(groups, tuple(LabelTerm(*label) for label in labels))
    unknown = unknown_groups(tx, wanted)
    if unknown:
        raise CliError(f"no host is in group {', '.join(unknown)}")
    without = unknown_labels(tx, wanted)
    if without:
        raise CliError(f"no host has label {', '.join(map(str, without))}")
    return wanted
