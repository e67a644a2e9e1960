"""Which host keys are trusted: lines of known_hosts from the database, and files besides."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncssh
from asyncssh import SSHKey, SSHKnownHosts

from fleetpulse.config import ConfigError

_DEFAULT_PORT = 22
_LARGE = 500  # lines


class Trusted(NamedTuple):
    """What is known of one host: its keys, the CAs that may vouch for it, and keys that were revoked.

    `own` are those of the keys that another one contradicts. The others are known of its address alone, without
    its port, where another machine may answer.
    """

    keys: tuple[SSHKey, ...] = ()
    authorities: tuple[SSHKey, ...] = ()
    revoked: tuple[SSHKey, ...] = ()
    own: tuple[SSHKey, ...] = ()

    @property
    def for_connection(self) -> tuple[tuple[SSHKey, ...], tuple[SSHKey, ...], tuple[SSHKey, ...]]:
        """In the form that asyncssh takes."""
        return self.keys, self.authorities, self.revoked

    @property
    def is_empty(self) -> bool:
        """Whether nothing vouches for the host."""
        return not self.keys and not self.authorities


class TrustedKeys:
    """All of them. Raises ConfigError for a file that cannot be read."""

    def __init__(self, lines: Iterable[str] = (), files: Iterable[Path] = ()):
        texts = ["\n".join(lines)]
        for path in files:
            try:
                texts.append(path.read_text(encoding="utf-8", errors="replace"))
            except OSError as error:
                raise ConfigError(f"ssh.known_hosts: cannot read {path}: {error.strerror}") from None
        self._lists = [_import(text) for text in texts]
        self._known: dict[tuple[tuple[str, ...], int], Trusted] = {}
        self.is_large = sum(text.count("\n") for text in texts) > _LARGE
        """Whether looking for a host takes long: each line with a pattern or a hash is tried for each name."""

    def of(self, names: tuple[str, ...], port: int) -> Trusted:
        """What is known of a host by any of its names and addresses, with and without its port."""
        known = self._known.get((names, port))
        if known is None:
            self._known[names, port] = known = self._look_for(names, port)
        return known

    def _look_for(self, names: tuple[str, ...], port: int) -> Trusted:
        keys: dict[SSHKey, None] = {}
        authorities: dict[SSHKey, None] = {}
        revoked: dict[SSHKey, None] = {}
        own: dict[SSHKey, None] = {}
        for known in self._lists:
            for name in dict.fromkeys(names):
                found = known.match(name, "", port if port != _DEFAULT_PORT else None)
                keys |= dict.fromkeys(found[0])
                authorities |= dict.fromkeys(found[1])
                revoked |= dict.fromkeys(found[2])
                if port == _DEFAULT_PORT or not _is_address(name):
                    own |= dict.fromkeys(found[0])
                else:
                    own |= dict.fromkeys(known.match(f"[{name}]:{port}", "", None)[0])
        return Trusted(tuple(keys), tuple(authorities), tuple(revoked), tuple(own))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def fingerprint_of(key: SSHKey) -> str:
    """A key as people compare it: its type and SHA-256, as `ssh-keygen -l` shows it."""
    return f"{key.get_algorithm()} {key.get_fingerprint()}"


def _import(text: str) -> SSHKnownHosts:
    """A list of keys; lines that make no sense are left out, as ssh does."""
    try:
        return asyncssh.import_known_hosts(text)
    except ValueError:
        good = []
        for line in text.splitlines():
            try:
                asyncssh.import_known_hosts(line)
            except ValueError:
                continue
            good.append(line)
        return asyncssh.import_known_hosts("\n".join(good))
