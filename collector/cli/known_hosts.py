"""Lines of known_hosts (man 8 sshd) as they are stored: whose key it is, and the key. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

_MARKERS = ("", "cert-authority", "revoked")
_LONGEST = 65_000  # bytes that a column of the database takes


class KnownLine(NamedTuple):
    """One line. `names` may be several with commas, patterns, or hashed; `marker` is empty for a host's key."""

    marker: str
    names: str
    key_type: str
    key: str

    @property
    def text(self) -> str:
        """As it is stored: without comments, and blanks as few as possible."""
        mark = f"@{self.marker} " if self.marker else ""
        return f"{mark}{self.names} {self.key_type} {self.key}"

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.key)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    @property
    def is_hashed(self) -> bool:
        """Whether nobody can see whose key it is."""
        return self.names.startswith("|")

    def names_host(self, names: Sequence[str]) -> bool:
        """Whether one of these names stands there as it is."""
        return self.names in names or any(name in names for name in self.names.split(","))

    def is_of(self, name: str) -> bool:
        """The same for one name, which may be hashed there."""
        if self.is_hashed and self.names != name:
            import asyncssh

            return any(asyncssh.import_known_hosts(self.text).match(name, "", None)[:3])
        return self.names_host([name])

    def without(self, name: str) -> KnownLine | None:
        """The line for its other names, if there are any."""
        if self.is_hashed:
            return None
        rest = [other for other in self.names.split(",") if other != name]
        return self._replace(names=",".join(rest)) if rest and self.names != name else None


def parse_line(line: str) -> KnownLine | None:
    """None for blank lines and comments. Raises ValueError."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    marker = words.pop(0)[1:] if words[0].startswith("@") else ""
    if marker not in _MARKERS or len(words) < 3:
        raise ValueError("is no line of known_hosts")
    found = KnownLine(marker, *words[:3])
    _check_key(found.key_type, found.key)
    if len(found.text.encode()) > _LONGEST:
        raise ValueError("is too long")
    return found


def parse_public_key(line: str) -> tuple[str, str] | None:
    """Type and key of a line of a .pub file; None for blank lines and comments. Raises ValueError."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    if len(words) < 2:
        raise ValueError("is no public key in the form of OpenSSH")
    _check_key(*words[:2])
    return words[0], words[1]


def _check_key(key_type: str, key: str) -> None:
    """The key's own words repeat its type."""
    try:
        blob = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its key is no base64") from None
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != key_type.encode():
        raise ValueError(f"its key is not of the type {key_type}")
