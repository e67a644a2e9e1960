"""What is said of a host or group on the command line, and how settings are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from collector.cli import options
from collector.cli.ssh_algorithms import check_algorithms
from collector.core.render import duration
from collector.core.ssh_settings import SettingsError, SshSettings, check, merge, parse_option

Command = TypeVar("Command", bound=Callable[..., Any])

_NOTHING = SshSettings()
_IN_MILLISECONDS = ("interval", "timeout")


class Given(NamedTuple):
    """What was said, and the names of what was taken back; of further options in `without`."""

    settings: SshSettings
    taken_back: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()

    @property
    def is_nothing(self) -> bool:
        """Whether no option was there."""
        return self.settings == _NOTHING and not self.taken_back and not self.without

    def over(self, stored: SshSettings) -> SshSettings:
        """What holds then of what was stored."""
        kept = {
            name: value
            for name, value in msgspec.structs.asdict(stored).items()
            if name not in self.taken_back
        }
        kept["options"] = {name: value for name, value in stored.options.items() if name not in self.without}
        return merge([self.settings, SshSettings(**kept)])


def settings_options(command: Command) -> Command:
    """The options that hosts and groups have in common; `given` takes their values."""
    for option in reversed(
        (
            click.option("--port", type=click.IntRange(0, 65_535), help="Where its sshd listens."),
            click.option("--user", metavar="NAME", help="Whom to log in as."),
            click.option("--key", metavar="FILE", help="The private key to log in with, on the collector."),
            click.option(
                "--jump",
                metavar="[USER@]HOST[:PORT]",
                help="Through which host, or several with commas; or none.",
            ),
            click.option(
                "--interval", type=options.duration, metavar="DURATION", help="How often it is polled."
            ),
            click.option(
                "--timeout", type=options.duration, metavar="DURATION", help="How long a poll may take."
            ),
            click.option(
                "--fallback/--no-fallback",
                default=None,
                help="Whether SSH is asked when its agent is silent.",
            ),
            click.option(
                "-o",
                "--option",
                "more",
                multiple=True,
                metavar="NAME=VALUE",
                help="As for ssh -o; may be repeated; NAME= takes one back.",
            ),
        )
    ):
        command = option(command)
    return command


def given(more: Sequence[str], **said: Any) -> Given:
    """What these options say; None is not said, and empty is taken back. Raises click.BadParameter."""
    if said.get("key"):
        said["key"] = absolute(said["key"])
    own = {name: value for name, value in said.items() if value is not None}
    try:
        settings = merge([SshSettings(**own), *(SshSettings(**parse_option(text)) for text in more)])
        without = frozenset(name for name, value in settings.options.items() if not value)
        kept = {name: value for name, value in settings.options.items() if value}
        settings = msgspec.structs.replace(settings, options=kept)
        check(settings)
        check_algorithms(kept)
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None
    taken_back = frozenset(name for name, value in own.items() if not value and value is not False)
    return Given(settings, taken_back, without)


def absolute(key: str) -> str:
    """A key's file wherever the collector was started; ~ is the home of the collector's user."""
    return key if key.startswith("~") else str(Path(key).absolute())


def told(settings: SshSettings) -> str:
    """What is set, in one line."""
    return ", ".join(all_of(settings)) or "nothing"


def all_of(settings: SshSettings) -> list[str]:
    """Everything that is set: "port 2222"."""
    return [f"{name} {_text(name, value)}" for name, value in _items(settings)]


def changes(before: SshSettings, after: SshSettings) -> list[str]:
    """What differs: "port 22 -> 2222"."""
    old, new = dict(_items(before)), dict(_items(after))
    return [
        f"{name} {_text(name, old.get(name))} -> {_text(name, new.get(name))}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def settings_json(settings: SshSettings) -> dict[str, object]:
    """See docs/cli.md."""
    return {
        "address": settings.address or None,
        "port": settings.port or None,
        "user": settings.user or None,
        "key": settings.key or None,
        "jump": settings.jump or None,
        "interval_seconds": settings.interval / 1000 or None,
        "timeout_seconds": settings.timeout / 1000 or None,
        "concurrency": settings.concurrency or None,
        "fallback": settings.fallback,
        "options": dict(settings.options),
    }


def _items(settings: SshSettings) -> list[tuple[str, object]]:
    plain = [(name, value) for name, value in msgspec.structs.asdict(settings).items() if name != "options"]
    return [(name, value) for name, value in plain if value or value is False] + sorted(
        settings.options.items()
    )


def _text(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return duration(float(str(value))) if name in _IN_MILLISECONDS else str(value)
