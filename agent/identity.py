"""Who this host is: a stored UUID, and what recognises a copy of it."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from agent.state_dir import flush_directory, put_in_place, write_aside
from fleetpulse.machine.fingerprint import machine_fingerprint
from fleetpulse.model import HostId, parse_host_id

_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class IdentityError(Exception):
    """The host's identity cannot be read or stored; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`machine_id` is a hash, `boot_id` the kernel's; each is empty where the machine has none."""

    host_id: HostId
    hostname: str
    machine_id: str
    boot_id: str


def load_identity(state_dir: Path, hostname: str = "") -> Identity:
    """The identity stored in `state_dir`, made on the first start; `hostname` overrides the machine's.

    Raises IdentityError.
    """
    return describe(stored_host_id(state_dir / "host_id"), hostname)


def describe(host_id: HostId, hostname: str = "") -> Identity:
    """The machine as the host `host_id`; `hostname` overrides the machine's."""
    return Identity(
        host_id=host_id,
        hostname=hostname or socket.gethostname(),
        machine_id=machine_fingerprint(_read_line(_MACHINE_ID)),
        boot_id=_read_line(_BOOT_ID),
    )


def existing_host_id(path: Path) -> HostId | None:
    """The UUID in `path`, None if there is no such file. Raises IdentityError, as `stored_host_id` does."""
    return stored_host_id(path) if path.exists() else None


def stored_host_id(path: Path) -> HostId:
    """The UUID in `path`; a new one is stored there first if the file does not exist.

    Raises IdentityError for anything else than a UUID: overwriting it would make a new host of this one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _create_host_id(path)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"cannot read the host's id from {path}: {_reason(error)}") from None
    try:
        return parse_host_id(text.strip())
    except ValueError:
        raise IdentityError(
            f"{path} should hold the host's UUID but holds {text.strip()[:64]!r};"
            " restore it from a backup, or remove the file to register this machine as a new host"
        ) from None


def replace_host_id(path: Path, host_id: HostId) -> None:
    """Make another host of this machine. Raises IdentityError."""
    try:
        put_in_place(write_aside(path, f"{host_id}\n".encode()), path)
    except OSError as error:
        raise IdentityError(f"cannot store the host's id in {path}: {_reason(error)}") from None


def _create_host_id(path: Path) -> HostId:
    """Written aside, flushed and linked into place: after a power cut it is there whole or not at all."""
    host_id = HostId(str(uuid.uuid4()))
    try:
        aside = write_aside(path, f"{host_id}\n".encode())
        try:
            # link, not rename: of two agents that start at once, the second must take the first's id.
            os.link(aside, path)
        finally:
            aside.unlink()
        flush_directory(path.parent)
    except FileExistsError:
        return stored_host_id(path)
    except OSError as error:
        raise IdentityError(f"cannot store the host's id in {path}: {_reason(error)}") from None
    return host_id


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # containers and other systems may lack it; nothing depends on it being there


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "not text"
