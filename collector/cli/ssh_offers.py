"""The host keys that hosts offer, beside those that are trusted."""

from __future__ import annotations

import asyncio
import enum
import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from asyncssh import SSHKey

from collector.cli.known_hosts import KnownLine
from collector.config import Ssh
from collector.core.diagnosis import DiagnosisKind
from collector.ssh.connection import Dialer
from collector.ssh.failure import ProbeFailure
from collector.ssh.target import Resolver, Target
from collector.ssh.trust import Trusted, TrustedKeys

_AT_ONCE = 20
_DEFAULT_PORT = 22


class Verdict(enum.StrEnum):
    """What is to be done about the keys of a host."""

    NEW = "not trusted"
    TRUSTED = "trusted"
    BY_CA = "trusted by CA"
    CHANGED = "another key is trusted"
    REVOKED = "shows a revoked key"
    FAILED = "no key to be had"


class Offer(NamedTuple):
    """What a host offers, what is trusted of it, and why there is nothing, if so.

    `by_ca`: it shows a certificate of a trusted CA. `is_chosen`: of all that it offers somebody means these keys.
    """

    target: Target
    keys: tuple[SSHKey, ...]
    trusted: Trusted
    problem: str = ""
    by_ca: bool = False
    is_chosen: bool = False

    @property
    def verdict(self) -> Verdict:
        """A key that is known and shown outweighs types that are not known yet, but no other key of its type."""
        if self.problem:
            return Verdict.FAILED
        if any(key in self.trusted.revoked for key in self.keys):
            return Verdict.REVOKED
        if self.by_ca and not self.same and not self.is_chosen:
            return Verdict.BY_CA
        if self.other:
            return Verdict.CHANGED
        return Verdict.TRUSTED if self.same else Verdict.NEW

    @property
    def same(self) -> list[SSHKey]:
        """The keys that are offered and trusted."""
        return [key for key in self.keys if key in self.trusted.keys]

    @property
    def fresh(self) -> list[SSHKey]:
        """The keys that are offered and not trusted."""
        return [key for key in self.keys if key not in self.trusted.keys]

    @property
    def other(self) -> list[SSHKey]:
        """The trusted keys in whose place another of the same type is offered; all, if none is offered.

        Somebody who means one key says nothing of other types.
        """
        if not self.same and not self.is_chosen:
            return list(self.trusted.own)
        types = {key.get_algorithm() for key in self.keys}
        return [key for key in self.trusted.own if key not in self.keys and key.get_algorithm() in types]


def fetch_offers(targets: Sequence[Target], site: Ssh, lines: Sequence[str]) -> list[Offer]:
    """Ask each host for its keys, 20 at a time. Raises ConfigError."""
    return asyncio.run(_fetch(targets, Dialer(Resolver(site), TrustedKeys(lines, site.known_hosts))))


def known_name(target: Target) -> str:
    """Under which name a host's key is written down: its record's, but at another port than 22 no bare address.

    What answers at another port of a jump host's name or of an address may be another machine.
    """
    alias = target.key_alias
    if target.port != _DEFAULT_PORT and (not target.host or _is_address(alias)):
        return f"[{alias}]:{target.port}"
    return alias


def names_of(target: Target, *, is_shared: bool) -> set[str]:
    """The names in lines that are this host's alone; its address only if nobody shares it."""
    names = {known_name(target)}
    if target.host and not _is_address(target.key_alias):
        names.add(f"[{target.key_alias}]:{target.port}")
    if not is_shared:
        at_port = target.port != _DEFAULT_PORT
        names.add(f"[{target.address}]:{target.port}" if at_port else target.address)
    return names


def lines_of(target: Target, keys: Sequence[SSHKey]) -> list[str]:
    """The lines by which these keys are trusted."""
    return [KnownLine("", known_name(target), *_words(key)).text for key in keys]


def lines_without(
    names: Collection[str], keys: Sequence[SSHKey], lines: Sequence[KnownLine]
) -> tuple[list[str], list[str]]:
    """The lines that trust these keys of these names, and what is left of them for other names."""
    wanted = {_words(key) for key in keys}
    gone, left = [], []
    for line in lines:
        if line.marker or (line.key_type, line.key) not in wanted:
            continue
        rest: KnownLine | None = line
        for name in names:
            if rest is not None and rest.is_of(name):
                rest = rest.without(name)
        if rest != line:
            gone.append(line.text)
            left += [rest.text] if rest is not None else []
    return gone, left


def _words(key: SSHKey) -> tuple[str, str]:
    kind, text = key.export_public_key().decode().split()[:2]
    return kind, text


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _fetch(targets: Sequence[Target], dialer: Dialer) -> list[Offer]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def fetch(target: Target) -> Offer:
        trusted = dialer.trusted.of((target.key_alias, target.address), target.port)
        async with limit:
            try:
                keys = tuple(await dialer.fetch_keys(target))
                offer = Offer(target, keys, trusted)
                if trusted.authorities and not offer.same:
                    offer = offer._replace(by_ca=await _is_vouched_for(target, dialer))
            except ProbeFailure as failure:
                return Offer(target, (), trusted, failure.diagnosis.line)
            return offer

    try:
        return await asyncio.gather(*map(fetch, targets))
    finally:
        dialer.close()


async def _is_vouched_for(target: Target, dialer: Dialer) -> bool:
    """Whether the host shows a certificate that holds: whoever is asked to log in has got so far."""
    if not target.jump:  # to which one has to log in
        target = replace(target, keys=(), agent=None)
    try:
        connection = await dialer.dial(target)
    except ProbeFailure as failure:
        return failure.diagnosis.kind is DiagnosisKind.KEY_REFUSED
    connection.close()
    return True
