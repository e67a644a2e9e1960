"""The collector's configuration, shared by the service and collector-cli."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from collector.core.silence import ANNOUNCED_WITHIN
from collector.core.ssh_settings import LONGEST_POLL, SettingsError, SshSettings, check
from fleetpulse import config
from fleetpulse.config import ConfigError, Duration, Size

PREFIX = "FLEETPULSE"
CONFIG_VARIABLE = "FLEETPULSE_CONFIG"
PASSWORD_VARIABLE = "FLEETPULSE_DATABASE_PASSWORD"  # noqa: S105 - a variable's name, not a password
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", re.ASCII)

DEFAULT_FILE = Path("/etc/fleetpulse/collector.toml")


class Silence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When many silent hosts are one event about the fleet."""

    fleet_share: float = 0.3
    fleet_minimum: int = 10
    sweep_interval: Duration = Duration(2)


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Certificates: the CA's, the collector's own, and those of hosts."""

    dir: Path = Path("/var/lib/fleetpulse/identity")
    ca_bundle: Path | None = None
    ca_key: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    names: tuple[str, ...] = ()
    host_lifetime: Duration = Duration(90 * 86400)
    server_lifetime: Duration = Duration(90 * 86400)
    enroll_listen: str = ""


class Ssh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Machines reached over SSH; what hosts and groups have of their own wins over it."""

    keys: tuple[Path, ...] = ()
    agent: Path | None = None
    user: str = ""
    port: int = 22
    jump: str = ""
    config_file: Path | None = None
    known_hosts: tuple[Path, ...] = ()
    interval: Duration = Duration(30)
    timeout: Duration = Duration(15)
    concurrency: int = 100
    fallback: bool = True
    fallback_interval: Duration = Duration(60)

    @property
    def has_credentials(self) -> bool:
        """Whether there is anything to log in with."""
        return bool(self.keys or self.agent)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what agents may ask of the collector."""

    queue_reports: int = 20_000
    message_size: Size = Size(1 << 20)
    batch_reports: int = 10
    connections: int = 10_000
    hello_timeout: Duration = Duration(10)
    reports_per_second: float = 100.0
    hellos_per_minute: float = 12.0
    refused_enrolments_per_minute: float = 6.0


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the service logs to standard error."""

    level: str = "info"
    format: str = "auto"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every key of collector.toml; docs/configuration.md explains each."""

    listen: str = "127.0.0.1:18443"
    tls: str = "on"
    database: str = "sqlite:////var/lib/fleetpulse/fleet.db"
    database_password_file: Path | None = None
    name: str = ""
    pool_size: int = 8
    pool_timeout: Duration = Duration(5)
    writers: int = 2
    batch_reports: int = 500
    batch_linger: Duration = Duration(0.02)
    connection_reserve: int = 10
    drain_timeout: Duration = Duration(20)
    event_retention: Duration = Duration(365 * 86400)
    rules: Path | None = None
    identity: Identity = Identity()
    silence: Silence = Silence()
    ssh: Ssh = Ssh()
    limits: Limits = Limits()
    log: Log = Log()


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, the file it came from (None: built-in defaults), and the secret beside it."""

    config: Config
    path: Path | None
    database_password: str = msgspec.field(default="")

    def __repr__(self) -> str:
        return f"Loaded({self.config!r}, {self.path!r})"


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Loaded:
    """The configuration in `path`, else in $FLEETPULSE_CONFIG, else in /etc if it is there.

    Every key can be overridden by the environment. Raises ConfigError.
    """
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    if path is None:
        path = config.existing(DEFAULT_FILE)
    loaded = config.load(
        Config,
        path,
        environ,
        PREFIX,
        other_names=frozenset({CONFIG_VARIABLE, PASSWORD_VARIABLE}),
        other_prefixes=("FLEETPULSE_AGENT_",),
    )
    problem = _problem(loaded)
    if problem is not None:
        raise config.refuse(*problem, path, environ, PREFIX)
    if not loaded.name:
        loaded = msgspec.structs.replace(loaded, name=f"{socket.gethostname()}/{loaded.listen}")
    return Loaded(loaded, path, _password(loaded, environ))


def _problem(loaded: Config) -> tuple[str, str] | None:
    """The first key whose value makes no sense, and why."""
    at_least = {
        "pool_size": (loaded.pool_size, 3),
        "writers": (loaded.writers, 1),
        "batch_reports": (loaded.batch_reports, 1),
        "connection_reserve": (loaded.connection_reserve, 0),
        "silence.fleet_minimum": (loaded.silence.fleet_minimum, 2),
        "silence.sweep_interval": (loaded.silence.sweep_interval, 0.05),
        "limits.queue_reports": (loaded.limits.queue_reports, 100),
        "limits.message_size": (loaded.limits.message_size, 64 << 10),
        "limits.batch_reports": (loaded.limits.batch_reports, 1),
        "limits.connections": (loaded.limits.connections, 1),
        "limits.hello_timeout": (loaded.limits.hello_timeout, 0.1),
        "limits.reports_per_second": (loaded.limits.reports_per_second, 1),
        "limits.hellos_per_minute": (loaded.limits.hellos_per_minute, 1),
        "limits.refused_enrolments_per_minute": (loaded.limits.refused_enrolments_per_minute, 0.1),
        "identity.host_lifetime": (loaded.identity.host_lifetime, 2),
        "identity.server_lifetime": (loaded.identity.server_lifetime, 2),
        "ssh.interval": (loaded.ssh.interval, 1),
        "ssh.timeout": (loaded.ssh.timeout, 0.5),
        "ssh.concurrency": (loaded.ssh.concurrency, 4),
        "ssh.fallback_interval": (loaded.ssh.fallback_interval, 1),
        "pool_timeout": (loaded.pool_timeout, 0.1),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            return key, f"{value:g} is too small; at least {least:g}"
    if loaded.writers > loaded.pool_size - 2:
        return (
            "writers",
            f"{loaded.writers} do not fit into pool_size {loaded.pool_size}; two connections are for readers",
        )
    longest = ANNOUNCED_WITHIN / 2000
    if loaded.silence.sweep_interval > longest:
        return (
            "silence.sweep_interval",
            f"{loaded.silence.sweep_interval:g} s is too long; at most {longest:g} s",
        )
    if not 0 < loaded.silence.fleet_share <= 1:
        return "silence.fleet_share", f"{loaded.silence.fleet_share:g} is no share between 0 and 1"
    if loaded.log.level not in ("debug", "info", "warning", "error"):
        return "log.level", f"expected debug, info, warning or error, got {loaded.log.level!r}"
    if loaded.log.format not in ("auto", "console", "json"):
        return "log.format", f"expected auto, console or json, got {loaded.log.format!r}"
    if loaded.tls not in ("on", "off"):
        return "tls", f"expected on or off, got {loaded.tls!r}"
    wrong_address = _listen_problem(loaded.listen, plaintext=loaded.tls == "off")
    if wrong_address:
        return "listen", wrong_address
    if loaded.listen.endswith(":65535") and loaded.tls == "on" and not loaded.identity.enroll_listen:
        return "listen", "there is no port after 65535 for enrolment; set identity.enroll_listen"
    return _identity_problem(loaded.identity) or _ssh_problem(loaded.ssh)


def _ssh_problem(ssh: Ssh) -> tuple[str, str] | None:
    try:
        check(SshSettings(port=ssh.port, user=ssh.user, jump=ssh.jump))
    except SettingsError as error:
        key, _, what = str(error).partition(": ")
        return f"ssh.{key}", what
    if ssh.timeout > LONGEST_POLL:
        return "ssh.timeout", f"{ssh.timeout:g} s is too long; at most {LONGEST_POLL:g} s"
    return None


def _identity_problem(identity: Identity) -> tuple[str, str] | None:
    if (identity.certificate is None) != (identity.key is None):
        key = "key" if identity.certificate is None else "certificate"
        return f"identity.{key}", "identity.certificate and identity.key belong together; set both or neither"
    if identity.ca_key is not None and identity.ca_bundle is None:
        return "identity.ca_key", "is the key of the first certificate in identity.ca_bundle; set that too"
    if identity.ca_bundle is not None and identity.ca_key is None and identity.certificate is None:
        return (
            "identity.ca_bundle",
            "without identity.ca_key nothing can be signed here; set that, or identity.certificate and identity.key",
        )
    for name in identity.names:
        if "%" in name and _is_address(name):
            return (
                "identity.names",
                f"{name!r} has a scope, which no certificate can hold; write {name.partition('%')[0]!r}",
            )
        if not _NAME.fullmatch(name) and not _is_address(name):
            return "identity.names", f"{name!r} is neither a DNS name nor an IP address"
    if identity.enroll_listen not in ("", "off"):
        wrong = _listen_problem(identity.enroll_listen, plaintext=False)
        if wrong:
            return "identity.enroll_listen", wrong
    return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _listen_problem(listen: str, *, plaintext: bool) -> str | None:
    """What is wrong with an address to listen on. Plaintext must not leave this machine."""
    if listen.startswith("unix:"):
        return None
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or not 0 <= int(port) <= 65535:
        return f"expected HOST:PORT or unix:/path, got {listen!r}"
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return f"{host!r} is neither an IP address nor localhost; name the address to listen on"
    if loopback or not plaintext:
        return None
    return (
        f"{listen} is reachable from other machines, and plaintext is allowed only on loopback; "
        'set tls = "on", or listen on 127.0.0.1, [::1] or unix:/path'
    )


def _password(loaded: Config, environ: Mapping[str, str]) -> str:
    if loaded.database_password_file is None:
        return environ.get(PASSWORD_VARIABLE, "")
    path = loaded.database_password_file
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"database_password_file: cannot read {path}: {error}") from None
    if mode & 0o007:
        raise ConfigError(f"database_password_file: {path} is open to everyone; run: chmod o= {path}")
    return text
