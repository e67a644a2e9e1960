"""How a machine is reached over SSH, as the variables of an Ansible inventory say it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from collector.cli.inventory import is_template, unwrapped
from collector.core.ssh_settings import LONGEST_POLL, SettingsError, SshSettings, check, merge, parse_option
from fleetpulse.config import Duration

# What we understand, by our names. Where Ansible knows several names, the later one wins there, too.
_PLAIN = {
    "address": ("ansible_host", "ansible_ssh_host"),
    "port": ("ansible_port", "ansible_ssh_port"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "key": ("ansible_private_key_file", "ansible_ssh_private_key_file"),
    "interval": ("fleetpulse_ssh_interval",),
    "timeout": ("fleetpulse_ssh_timeout",),
}
_ARGUMENTS = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")  # as ssh gets them
_OVER_SSH = ("ssh", "smart", "paramiko", "paramiko_ssh")

_FLAGS_WITH_VALUE = "BDEFIJLOQRSWbceilmopw"  # man 1 ssh
_FLAGS = {
    "J": "ProxyJump",
    "p": "Port",
    "l": "User",
    "i": "IdentityFile",
    "c": "Ciphers",
    "m": "MACs",
}


class Refused(Exception):
    """A machine's variables cannot be understood; the text says which, and why."""


class Understood(NamedTuple):
    """What the variables of a machine say.

    `other_connection` is how Ansible reaches it, if not over SSH. `ignored` are options of ssh that have no
    meaning here.
    """

    settings: SshSettings
    other_connection: str = ""
    ignored: tuple[str, ...] = ()


def understand(variables: Mapping[str, object]) -> Understood:
    """How the machine is reached. Raises Refused."""
    connection = _text(variables, "ansible_connection").rpartition(".")[2]  # ansible.builtin.ssh
    if connection and connection not in _OVER_SSH:
        return Understood(SshSettings(), connection)
    said: dict[str, object] = {}
    for setting, names in _PLAIN.items():
        for name in names:
            value = _text(variables, name)
            if value:
                said[setting] = _converted(setting, name, value)
    # _converted gives each setting what its field takes, which a dictionary cannot say.
    found, ignored = [SshSettings(**said)], []  # type: ignore[arg-type]
    for name in _ARGUMENTS:
        for option in _options(name, _text(variables, name)):
            settings = _of_option(option)
            if settings is None:
                ignored.append(option.partition("=")[0])
            else:
                found.append(settings)
    settings = merge(found)
    try:
        check(settings)
    except SettingsError as error:
        raise Refused(str(error)) from None
    return Understood(settings, ignored=tuple(ignored))


def _text(variables: Mapping[str, object], name: str) -> str:
    value = unwrapped(variables.get(name))
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Refused(f"{name} is neither text nor a number")
    text = str(value).strip()
    if is_template(text):
        raise Refused(f"{name} is a template, {text!r}, which only Ansible can fill in")
    return text


def _converted(setting: str, name: str, value: str) -> object:
    if setting == "port":
        if not value.isdigit():
            raise Refused(f"{name}: {value!r} is no whole number")
        return int(value)
    if setting in ("interval", "timeout"):
        try:
            return Duration.parse(value).milliseconds
        except ValueError as error:
            raise Refused(f"{name}: {error}") from None
    return value


def _options(name: str, text: str) -> Iterator[str]:
    """Arguments of ssh as NAME=VALUE; a flag that has no such name as itself."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Refused(f"{name}: {error}") from None
    yield from (f"{flag}={value}" if value else flag for flag, value in _flags(words))


def _flags(words: list[str]) -> Iterator[tuple[str, str]]:
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            yield word, ""
            continue
        for place, letter in enumerate(word[1:], 1):
            if letter not in _FLAGS_WITH_VALUE:
                yield f"-{letter}", ""
                continue
            value = word[place + 1 :] or next(rest, "")
            if letter == "o":
                option, _, of_option = value.replace(" ", "=", "=" not in value).partition("=")
                yield option.strip(), of_option.strip()
            else:
                yield _FLAGS.get(letter, f"-{letter}"), value
            break


def _of_option(option: str) -> SshSettings | None:
    """An option as settings; None for one that has no meaning here."""
    name, _, value = option.partition("=")
    if name.lower() == "proxycommand":
        jump = "none" if value.lower() == "none" else _jump_of_command(value)
        return SshSettings(jump=jump) if jump else None
    try:
        settings = SshSettings(**parse_option(option))
    except SettingsError:
        return None
    # Of a connection it may be longer than a whole poll can be.
    return msgspec.structs.replace(settings, timeout=min(settings.timeout, round(LONGEST_POLL * 1000)))


def _jump_of_command(command: str) -> str:
    """The jump host of `ssh -W %h:%p [USER@]HOST`, the older form of ProxyJump; empty for other commands."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if not words or words[0].rpartition("/")[2] != "ssh":
        return ""
    said = {"ProxyJump": "", "Port": "", "User": "", "-W": ""}
    hosts = []
    for flag, value in _flags(words[1:]):
        if flag in said:
            said[flag] = said[flag] or value
        elif not flag.startswith("-") and not value:
            hosts.append(flag)
    is_tunnel = said["-W"] in ("%h:%p", "[%h]:%p") or hosts[1:] in (
        ["nc", "%h", "%p"],
        ["netcat", "%h", "%p"],
    )
    if not is_tunnel or not hosts:
        return ""
    host = hosts[0]
    if said["User"] and "@" not in host:
        host = f"{said['User']}@{host}"
    if said["Port"]:
        host = f"{host}:{said['Port']}"
    return f"{said['ProxyJump']},{host}" if said["ProxyJump"] else host
