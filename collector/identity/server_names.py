"""By which names and addresses agents may reach this collector."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from collector.identity.authority import general_name

_DNS_PATIENCE = 2.0  # seconds
_KEPT = 60.0  # seconds for which found names are taken to be true: asking DNS may take long

# Reserved for documentation (RFC 5737, RFC 3849): never sent to, but routed as everything far away is.
_FAR_AWAY = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def server_names(listen: str, configured: Sequence[str]) -> Callable[[], list[str]]:
    """A function that finds the names, at most once a minute."""
    found: list[str] = []
    until = 0.0

    def names() -> list[str]:
        nonlocal found, until
        if time.monotonic() >= until:
            found = find_names(listen, configured)
            until = time.monotonic() + _KEPT
        return found

    return names


def find_names(listen: str, configured: Sequence[str]) -> list[str]:
    """The names and addresses of the machine, the one it listens on, and the configured ones."""
    candidates = [
        *configured,
        socket.gethostname(),
        _full_name(),
        "localhost",
        "127.0.0.1",
        "::1",
        *_addresses(),
    ]
    if not listen.startswith("unix:"):
        candidates.append(listen.rpartition(":")[0].strip("[]"))
    return list(dict.fromkeys(name for candidate in candidates if (name := _usable(candidate))))


def _usable(name: str) -> str:
    """As certificates write it; empty for what none can hold, and for "every address"."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        with suppress(ValueError):
            general_name(name)
            return name.rstrip(".").lower()
        return ""
    return "" if address.is_unspecified else str(general_name(name).value)


def _full_name() -> str:
    """The fully qualified name, if it is found in time: nothing else must wait for DNS."""
    found: list[str] = []

    def ask() -> None:
        # UnicodeError: a hostname with a label of more than 63 characters, which DNS cannot have.
        with suppress(OSError, UnicodeError):
            found.append(socket.getfqdn())

    thread = threading.Thread(target=ask, name="name", daemon=True)
    thread.start()
    thread.join(_DNS_PATIENCE)
    return found[0] if found else ""


def _addresses() -> list[str]:
    """Those from which this machine would speak to the world; connecting UDP sends nothing."""
    found = []
    for family, far_away in _FAR_AWAY:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far_away, 9))
            found.append(probe.getsockname()[0])
    return found
