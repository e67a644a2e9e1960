"""Where the collector is, and how it may be spoken to."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

PLAINTEXT_DEFAULT = "127.0.0.1:18443"
"""Where a collector on this machine listens unless told otherwise."""

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s\[\]:/]+)):(?P<port>\d{1,5})")


class TargetError(ValueError):
    """An address that cannot be used; the text says why."""


class Endpoint(NamedTuple):
    """A host's name or address, without brackets, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(target: str) -> Endpoint:
    """Raises TargetError unless `target` is HOST:PORT, as TLS needs it."""
    if target.startswith("unix:"):
        raise TargetError(f'expected HOST:PORT, got {target!r}; a unix socket is for tls = "off"')
    match = _HOST_PORT.fullmatch(target)
    if match is None or not 0 < int(match["port"]) < 65_536:
        raise TargetError(f"expected HOST:PORT or [IPV6]:PORT, got {target!r}")
    return Endpoint(match["v6"] or match["host"], int(match["port"]))


def check_plaintext_target(target: str) -> None:
    """Raises TargetError unless `target` is HOST:PORT on loopback or unix:PATH.

    Without TLS nobody is who they say: everything else than this machine itself is refused.
    """
    if target.startswith("unix:"):
        if target.removeprefix("unix:").strip("/"):
            return
        raise TargetError("expected the socket's path after unix:")
    match = _HOST_PORT.fullmatch(target)
    if match is None or not 0 < int(match["port"]) < 65_536:
        raise TargetError(f"expected HOST:PORT, [IPV6]:PORT or unix:PATH, got {target!r}")
    if not _is_loopback(match["v6"] or match["host"]):
        raise TargetError(
            f"{target} is another machine;"
            " plaintext is only allowed to loopback (127.0.0.0/8, ::1, localhost) or a unix socket;"
            ' leave tls at "on" and enrol this machine: fleet-agent enroll --help'
        )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
