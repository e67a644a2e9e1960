"""The private keys with which the collector logs in."""

from __future__ import annotations

import stat
from pathlib import Path

import asyncssh
from asyncssh import SSHCertificate, SSHKey

ClientKey = SSHKey | tuple[SSHKey, SSHCertificate]


class KeyUnusable(Exception):
    """A key file cannot be used; the text says why, and what to do."""


class ClientKeys:
    """Reads each file once, and again when it has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], ClientKey]] = {}

    def load(self, path: Path) -> ClientKey:
        """The key, with its certificate (FILE-cert.pub) if there is one. Raises KeyUnusable."""
        try:
            status = path.stat()
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise KeyUnusable(f"{path} is open to others than its owner; run: chmod 600 {path}")
            stamp = status.st_mtime_ns, status.st_size
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                self._known[path] = known = (stamp, _read(path))
        except OSError as error:
            raise KeyUnusable(f"cannot read {path}: {error.strerror}") from None
        return known[1]


def _read(path: Path) -> ClientKey:
    try:
        key = asyncssh.read_private_key(path)
    except asyncssh.KeyEncryptionError:
        raise KeyUnusable(
            f"{path} has a passphrase, which nobody is here to type; put it into an ssh-agent (ssh.agent)"
        ) from None
    except asyncssh.KeyImportError as error:
        raise KeyUnusable(f"{path} is no private key: {error}") from None
    certificate = path.with_name(f"{path.name}-cert.pub")
    if not certificate.exists():
        return key
    try:
        return key, asyncssh.read_certificate(certificate)
    except asyncssh.KeyImportError as error:
        raise KeyUnusable(f"{certificate} is no certificate: {error}") from None
