"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def duration(value: str) -> int:
    """Milliseconds, from 90, 500ms, 15s, 5m, 24h or 90d. Raises click.BadParameter."""
    from fleetpulse.config import Duration

    try:
        return Duration.parse(value).milliseconds
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its shape is in docs/cli.md.")
group_option = click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Only hosts of this group; may be repeated."
)


def watch_options(command: Command) -> Command:
    """--watch and --interval."""
    command = click.option(
        "--interval",
        type=duration,
        default="2s",
        show_default=True,
        help="How often --watch looks; at least 100ms.",
    )(command)
    return click.option("--watch", is_flag=True, help="Keep looking, until Ctrl-C.")(command)


def pause(interval: int) -> float:
    """Seconds between two looks, from milliseconds."""
    return max(interval, 100) / 1000
