"""The private keys with which the collector logs in."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path

import asyncssh
from asyncssh import SSHCertificate, SSHKey

ClientKey = SSHKey | tuple[SSHKey, SSHCertificate]


_AGENT_LOOK = 10.0  # seconds
_AGENT_PATIENCE = 3.0


class KeyUnusable(Exception):
    """A key file cannot be used; the text says why, and what to do."""


class AgentKeys:
    """Whether ssh-agents can be asked. Each is looked at once in a while, not for each connection."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[float, str]] = {}

    async def problem(self, path: Path) -> str:
        """Why the agent is of no use; empty if it holds a key."""
        checked_at, problem = self._known.get(path, (-_AGENT_LOOK, ""))
        if time.monotonic() - checked_at >= _AGENT_LOOK:
            problem = await _look_at_agent(path)
            self._known[path] = time.monotonic(), problem
        return problem


async def _look_at_agent(path: Path) -> str:
    try:
        async with asyncio.timeout(_AGENT_PATIENCE):
            async with asyncssh.connect_agent(str(path)) as agent:
                keys = list(await agent.get_keys())
    except TimeoutError:
        return f"ssh.agent: {path} does not answer"
    except (OSError, ValueError) as error:
        return f"ssh.agent: cannot ask {path}: {error}; is ssh-agent running?"
    return "" if keys else f"ssh.agent: {path} holds no key; run: SSH_AUTH_SOCK={path} ssh-add"


class ClientKeys:
    """Reads each file once, and again when it has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], ClientKey]] = {}

    def load(self, path: Path) -> ClientKey:
        """The key, with its certificate (FILE-cert.pub) if there is one. Raises KeyUnusable."""
        try:
            status = path.stat()
            if path.suffix == ".pub":
                raise KeyUnusable(f"{path} is a public key; name the private one, {path.with_suffix('')}")
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
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        if "assphrase" in str(error):  # asyncssh has one error for this and for what is no key at all
            text = (
                f"{path} has a passphrase, which nobody is here to type; put it into an ssh-agent (ssh.agent)"
            )
            raise KeyUnusable(text) from None
        raise KeyUnusable(f"{path} is no private key: {error}") from None
    certificate = path.with_name(f"{path.name}-cert.pub")
    if not certificate.exists():
        return key
    try:
        return key, asyncssh.read_certificate(certificate)
    except asyncssh.KeyImportError as error:
        raise KeyUnusable(f"{certificate} is no certificate: {error}") from None
