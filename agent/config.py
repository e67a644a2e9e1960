"""The agent's configuration: /etc/fleetpulse/agent.toml, overridden by FLEETPULSE_AGENT_* variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from agent.checks import ChecksConfig
from agent.target import PLAINTEXT_DEFAULT, TargetError, check_plaintext_target, parse_endpoint
from fleetpulse.config import ConfigError, Duration, Size, existing, load, refuse
from fleetpulse.convert import MAX_GROUPS, MAX_NAME, MAX_TTL, MIN_INTERVAL

PREFIX = "FLEETPULSE_AGENT"
CONFIG_VARIABLE = f"{PREFIX}_CONFIG"
DEFAULT_PATH = Path("/etc/fleetpulse/agent.toml")

_MIN_SPOOL_SIZE = 64 << 10
_MIN_SPOOL_AGE = 60.0
_MIN_ACK_TIMEOUT = 1.0
_MIN_ACK_DEFAULT = 10.0


def default_state_dir() -> Path:
    """Where the agent keeps its identity and its spool: of the system for root, else of the user."""
    if os.geteuid() == 0:
        return Path("/var/lib/fleetpulse-agent")
    state_home = os.environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    base = Path(state_home) if state_home.startswith("/") else Path.home() / ".local" / "state"
    return base / "fleetpulse-agent"


class SpoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The bounds of the queue on disk; beyond them the oldest reports are dropped."""

    max_age: Duration = Duration(86_400)
    max_size: Size = Size(64 << 20)


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes to stderr, and in which form."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set."""

    collector: str = ""
    """Address of the collector, HOST:PORT or, without TLS, unix:PATH; see `target`."""
    tls: Literal["on", "off"] = "on"
    """Off is for a collector on this machine that listens in plaintext."""
    interval: Duration = Duration(15)
    """Between two reports."""
    ttl: Duration = Duration(0)
    """Without a report for so long the host counts as stale; 0 is three intervals."""
    ack_timeout: Duration = Duration(0)
    """A stream on which a batch is not acked for so long is given up; 0 is one interval, at least 10 s."""
    state_dir: Path = msgspec.field(default_factory=default_state_dir)
    hostname: str = ""
    """Empty is the machine's own."""
    groups: tuple[str, ...] = ()
    spool: SpoolConfig = SpoolConfig()
    log: LogConfig = LogConfig()
    checks: ChecksConfig = ChecksConfig()

    def target(self, enrolled_at: str | None) -> str:
        """`collector` with its default worked out: where this machine enrolled, if it did.

        Without TLS, which takes no enrolment, a collector on this machine. Empty if nothing is known.
        """
        if self.tls == "off":
            return self.collector or PLAINTEXT_DEFAULT
        return self.collector or enrolled_at or ""

    @property
    def time_to_live(self) -> Duration:
        """`ttl` with its default worked out."""
        return self.ttl or Duration(3 * self.interval)

    @property
    def ack_deadline(self) -> Duration:
        """`ack_timeout` with its default worked out.

        One interval: the report that follows a break is sent within one, and its ack is waited for
        one more, so a half-open stream is left after two. A busy database may take seconds, hence the
        floor.
        """
        return self.ack_timeout or Duration(max(self.interval, _MIN_ACK_DEFAULT))


class Loaded(NamedTuple):
    """A configuration and where it came from."""

    config: AgentConfig
    path: Path | None
    """None: no file, the defaults."""
    variables: tuple[str, ...]
    """The environment variables that override the file."""


def load_agent_config(named: Path | None, environ: Mapping[str, str]) -> Loaded:
    """The configuration from the file `named`, else from the one that the environment names, else default.

    Only the default file may be missing. Raises ConfigError.
    """
    path = named
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    if path is None:
        path = existing(DEFAULT_PATH)
    config = load(AgentConfig, path, environ, PREFIX, other_names=frozenset({CONFIG_VARIABLE}))
    for key, what in _problems(config):
        raise refuse(key, what, path, environ, PREFIX)
    overriding = sorted(name for name in environ if name.startswith(f"{PREFIX}_") and name != CONFIG_VARIABLE)
    return Loaded(config, path, tuple(overriding))


def _problems(config: AgentConfig) -> list[tuple[str, str]]:
    """(key path, what is wrong with it) for what the types alone do not exclude."""
    found = []
    try:
        if config.tls == "off":
            check_plaintext_target(config.target(None))
        elif config.collector:
            parse_endpoint(config.collector)
    except TargetError as error:
        found.append(("collector", str(error)))
    if config.interval.milliseconds < MIN_INTERVAL:
        found.append(("interval", f"{config.interval:g} s is less than {MIN_INTERVAL / 1000:g} s"))
    if config.time_to_live < config.interval:
        found.append(("ttl", f"{config.ttl:g} s is less than the interval of {config.interval:g} s"))
    if config.time_to_live.milliseconds > MAX_TTL:
        key = "ttl" if config.ttl else "interval"
        found.append((key, f"a time-to-live of {config.time_to_live:g} s is more than {MAX_TTL // 1000} s"))
    if config.ack_timeout and config.ack_timeout < _MIN_ACK_TIMEOUT:
        found.append(("ack_timeout", f"{config.ack_timeout:g} s is less than {_MIN_ACK_TIMEOUT:g} s"))
    if config.spool.max_age < _MIN_SPOOL_AGE:
        found.append(("spool.max_age", f"{config.spool.max_age:g} s is less than {_MIN_SPOOL_AGE:g} s"))
    if config.spool.max_size < _MIN_SPOOL_SIZE:
        found.append(("spool.max_size", f"{config.spool.max_size} B is less than {_MIN_SPOOL_SIZE} B"))
    if len(config.hostname) > MAX_NAME:
        found.append(("hostname", f"longer than {MAX_NAME} characters"))
    if len(config.groups) > MAX_GROUPS:
        found.append(("groups", f"more than {MAX_GROUPS} groups"))
    if any(not group or len(group) > MAX_NAME for group in config.groups):
        found.append(("groups", f"a group's name has 1 to {MAX_NAME} characters"))
    return found


def as_toml(config: AgentConfig, enrolled_at: str | None = None) -> str:
    """The effective values as a configuration file; durations in seconds, sizes in bytes."""
    plain: dict[str, Any] = msgspec.to_builtins(config, enc_hook=_plain_value)
    plain["collector"] = config.target(enrolled_at)
    plain["ttl"] = float(config.time_to_live)
    plain["ack_timeout"] = float(config.ack_deadline)
    return "\n".join(_toml_lines(plain, ()))


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    if path and any(value is not None for value in values.values()):
        yield f"\n[{'.'.join(path)}]"
    for key, value in values.items():
        if value is not None:  # TOML has no word for it: unset
            # Strings, numbers, booleans and lists of them are written alike in JSON and in TOML.
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _toml_lines(value, (*path, key))


def _plain_value(value: object) -> object:
    if isinstance(value, Duration):
        return float(value)
    return int(value) if isinstance(value, Size) else str(value)


__all__ = ["AgentConfig", "ConfigError", "Loaded", "as_toml", "default_state_dir", "load_agent_config"]
