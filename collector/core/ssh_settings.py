"""How a host is reached over SSH: its own settings, those of its groups, and the site's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

POLLED = "ssh"
"""What stands for the agent's version in the record of a host without an agent."""

LONGEST_POLL = 15.0
"""Seconds that one poll may take at most: less than the lease under which it is done."""

OPTIONS = (
    "Ciphers",
    "HostKeyAlgorithms",
    "HostKeyAlias",
    "KexAlgorithms",
    "MACs",
    "PubkeyAcceptedAlgorithms",
)
"""Further options, by their names in ssh_config (man 5 ssh_config), in the form that they have there."""

# What else has a name in ssh_config, and is a setting of its own here.
_SAME = {
    "hostname": "address",
    "port": "port",
    "user": "user",
    "identityfile": "key",
    "proxyjump": "jump",
    "connecttimeout": "timeout",
}


class SshSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of one host or group. What is empty, 0 or None is left to somebody less particular.

    `interval` and `timeout` are milliseconds, `jump` is [USER@]HOST[:PORT] or several with commas, `key` a
    file on the collector, `concurrency` how many polls of a group may be under way at once. `fallback` is
    whether SSH may be asked when the host's agent is silent. `options` is named as in `OPTIONS`.
    """

    address: str = ""
    port: int = 0
    user: str = ""
    key: str = ""
    jump: str = ""
    interval: int = 0
    timeout: int = 0
    concurrency: int = 0
    fallback: bool | None = None
    options: Mapping[str, str] = {}


class SettingsError(ValueError):
    """A setting makes no sense; the text says which, and what would."""


def merge(settings: Iterable[SshSettings]) -> SshSettings:
    """All of them in one, the most particular first."""
    merged: dict[str, Any] = {}
    options: dict[str, str] = {}
    for one in settings:
        options = {**one.options, **options}
        for name in SshSettings.__struct_fields__:
            value = getattr(one, name)
            if name != "options" and name not in merged and (value or value is False):
                merged[name] = value
    return SshSettings(**merged, options=options)


def check(settings: SshSettings) -> None:
    """Raises SettingsError for what no connection could be made with."""
    if not 0 <= settings.port <= 65_535:
        raise SettingsError(f"port: {settings.port} is not between 1 and 65535")
    for name in ("address", "user", "key", "jump"):
        text = getattr(settings, name)
        if not text.isprintable() or text != text.strip() or (name != "key" and " " in text):
            raise SettingsError(f"{name}: {text!r} has blanks or control characters")
        if text.startswith("-"):
            raise SettingsError(f"{name}: {text!r} begins with a dash")
    for name, limit in (("interval", 1_000), ("timeout", 500)):
        value = getattr(settings, name)
        if value and value < limit:
            raise SettingsError(f"{name}: {value / 1000:g} s is too short; at least {limit / 1000:g} s")
    if settings.timeout > LONGEST_POLL * 1000:
        raise SettingsError(f"timeout: {settings.timeout / 1000:g} s is too long; at most {LONGEST_POLL:g} s")
    if settings.concurrency < 0:
        raise SettingsError(f"concurrency: {settings.concurrency} is not at least 1")
    for part in settings.jump.split(",") if settings.jump else ():
        host, _, port = part.rpartition("@")[2].rpartition(":")
        if not part.rpartition("@")[2] or (host and "]" not in port and not port.isdigit()):
            raise SettingsError(f"jump: {part!r} is no [USER@]HOST[:PORT]")
    for name in settings.options:
        if name not in OPTIONS:
            raise SettingsError(f"option {name} is not known; there are {', '.join(OPTIONS)}")


def parse_option(text: str) -> dict[str, Any]:
    """A setting in the form of ssh -o, NAME=VALUE, as arguments of `SshSettings`.

    Names in any case of letters. An option of `OPTIONS` may be empty, which takes it back. Raises SettingsError.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        name, _, value = (part.strip() for part in text.strip().partition(" "))
    known = {option.lower(): option for option in OPTIONS}
    if not value and not (equals and name.lower() in known):
        raise SettingsError(f"option {text!r} is no NAME=VALUE")
    same = _SAME.get(name.lower())
    if same in ("port", "timeout"):
        if not value.isdigit():
            raise SettingsError(f"option {name}: {value!r} is no whole number")
        return {same: int(value) * (1000 if same == "timeout" else 1)}
    if same is not None:
        return {same: value}
    if name.lower() not in known:
        names = sorted([*OPTIONS, "HostName", "Port", "User", "IdentityFile", "ProxyJump", "ConnectTimeout"])
        raise SettingsError(f"option {name} is not supported; there are {', '.join(names)}")
    return {"options": {known[name.lower()]: value}}


def encode(settings: SshSettings) -> str:
    """As it is stored: JSON of what is set."""
    return msgspec.json.encode(settings).decode()


def decode(text: str | bytes) -> SshSettings:
    """The reverse. Raises SettingsError for what somebody else has written into the database."""
    try:
        settings = msgspec.json.decode(text, type=SshSettings)
    except msgspec.DecodeError as error:
        raise SettingsError(f"stored settings make no sense: {error}") from None
    check(settings)
    return settings
