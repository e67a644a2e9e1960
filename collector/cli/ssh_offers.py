"""The host keys that hosts offer, beside those that are trusted."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from typing import NamedTuple

from asyncssh import SSHKey

from collector.cli.known_hosts import KnownLine, parse_line
from collector.config import Ssh
from collector.ssh.connection import Dialer
from collector.ssh.failure import ProbeFailure
from collector.ssh.target import Resolver, Target
from collector.ssh.trust import Trusted, TrustedKeys

_AT_ONCE = 20


class Verdict(enum.StrEnum):
    """What is to be done about the keys of a host."""

    NEW = "not trusted yet"
    TRUSTED = "already trusted"
    CHANGED = "another key is trusted"
    REVOKED = "shows a revoked key"
    FAILED = "no key to be had"


class Offer(NamedTuple):
    """What a host offers, what is trusted of it, and why there is nothing, if so."""

    target: Target
    keys: tuple[SSHKey, ...]
    trusted: Trusted
    problem: str = ""

    @property
    def verdict(self) -> Verdict:
        """A key that is known and shown outweighs types that are not known yet, but no other key of its type."""
        if self.problem:
            return Verdict.FAILED
        if any(key in self.trusted.revoked for key in self.keys):
            return Verdict.REVOKED
        if not self.trusted.keys:
            return Verdict.NEW
        return Verdict.TRUSTED if not self.other and self.same else Verdict.CHANGED

    @property
    def same(self) -> list[SSHKey]:
        """The keys that are offered and trusted."""
        return [key for key in self.keys if key in self.trusted.keys]

    @property
    def other(self) -> list[SSHKey]:
        """The trusted keys in whose place another of the same type is offered; all, if none is offered."""
        if not self.same:
            return list(self.trusted.keys)
        types = {key.get_algorithm() for key in self.keys}
        return [key for key in self.trusted.keys if key not in self.keys and key.get_algorithm() in types]


def fetch_offers(targets: Sequence[Target], site: Ssh, lines: Sequence[str]) -> list[Offer]:
    """Ask each host for its keys, 20 at a time. Raises ConfigError."""
    return asyncio.run(_fetch(targets, Dialer(Resolver(site), TrustedKeys(lines, site.known_hosts))))


def lines_of(target: Target, keys: Sequence[SSHKey]) -> list[str]:
    """The lines by which these keys are trusted."""
    texts = (key.export_public_key().decode().split() for key in keys)
    return [KnownLine("", target.key_alias, *words[:2]).text for words in texts]


def lines_with(target: Target, keys: Sequence[SSHKey], lines: Sequence[str]) -> list[str]:
    """Those of the stored lines by which these keys are trusted of this host alone, by any of its names."""
    names = [
        name for host in (target.key_alias, target.address) for name in (host, f"[{host}]:{target.port}")
    ]
    found = []
    for text in lines:
        line = parse_line(text)
        if line is None or line.marker or not (line.is_hashed or line.names_host(names)):
            continue
        known = TrustedKeys([text]).of((target.key_alias, target.address), target.port)
        if any(key in keys for key in known.keys):
            found.append(text)
    return found


async def _fetch(targets: Sequence[Target], dialer: Dialer) -> list[Offer]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def fetch(target: Target) -> Offer:
        trusted = dialer.trusted.of((target.key_alias, target.address), target.port)
        async with limit:
            try:
                return Offer(target, tuple(await dialer.fetch_keys(target)), trusted)
            except ProbeFailure as failure:
                return Offer(target, (), trusted, failure.diagnosis.line)

    try:
        return await asyncio.gather(*map(fetch, targets))
    finally:
        dialer.close()
