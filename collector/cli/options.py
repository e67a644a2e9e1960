"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
Labels = tuple[tuple[str, str | None], ...]
"""What `label_option` gives: names, and contents or None for any."""


def duration(value: str) -> int:
    """Milliseconds, from 90, 500ms, 15s, 5m, 24h or 90d. Raises click.BadParameter."""
    from fleetpulse.config import Duration

    try:
        return Duration.parse(value).milliseconds
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def label(value: str) -> tuple[str, str | None]:
    """A label's name and content, from KEY=VALUE; None from KEY alone. Raises click.BadParameter."""
    from fleetpulse.convert import MAX_NAME

    name, equals, content = value.partition("=")
    if not 0 < len(name) <= MAX_NAME or len(content) > MAX_NAME:
        raise click.BadParameter(f"KEY or KEY=VALUE, each of at most {MAX_NAME} characters")
    return name, content if equals else None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its shape is in docs/cli.md.")
group_option = click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Only hosts of this group; may be repeated."
)
label_option = click.option(
    "--label",
    "labels",
    multiple=True,
    type=label,
    metavar="KEY[=VALUE]",
    help="Only hosts with this label; may be repeated, and all must match.",
)


def check_groups(groups: Sequence[str], option: str = "--group") -> None:
    """Raises click.BadParameter for names that no group can have, or too many of them."""
    from fleetpulse.convert import MAX_GROUPS, MAX_NAME

    if len(groups) > MAX_GROUPS:
        raise click.BadParameter(f"at most {MAX_GROUPS}", param_hint=option)
    if not all(0 < len(group) <= MAX_NAME for group in groups):
        raise click.BadParameter(f"1 to {MAX_NAME} characters", param_hint=option)


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
