"""Whether hosts can be asked over SSH: what [ssh] names, and whom nobody vouches for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from collector.cli.findings import Finding
from collector.cli.ssh_untrusted import untrusted
from collector.config import Config, Ssh
from collector.core.render import count, listed
from collector.core.ssh_settings import SshSettings
from collector.ssh.keys import AgentKeys, ClientKeys, KeyUnusable
from collector.ssh.target import Resolver, Target
from collector.ssh.trust import TrustedKeys
from collector.store.ssh_hosts import SshHost, load_group_settings, load_ssh_hosts
from collector.store.store import Store
from collector.store.url import SqliteUrl, parse_url
from fleetpulse.config import ConfigError
from fleetpulse.model import State

_ROOT = 0


def look_at_ssh(store: Store, config: Config) -> Iterator[Finding]:
    """Keys, agent, files and hosts. Raises StoreError."""
    site = config.ssh
    with store.transaction(write=False) as tx:
        hosts, of_groups = load_ssh_hosts(tx), load_group_settings(tx)
    targets: list[Target] = []
    try:
        resolver = Resolver(site)
        usable = [one for one in hosts if not one.problem]
        targets = [resolver.target(one, of_groups) for one in usable]
        if site.config_file:
            if not usable:
                resolver.settings(_nobody(), {})
            yield Finding("ssh config_file", State.OK, f"{site.config_file} can be read")
    except ConfigError as error:
        yield Finding("ssh config_file", State.CRITICAL, str(error), "no host is asked over SSH until then")
    keys = dict.fromkeys((*site.keys, *(key for target in targets for key in target.keys)))
    yield look_at_keys(list(keys), collectors_user(config), has_agent=site.agent is not None)
    if site.agent is not None:
        problem = asyncio.run(AgentKeys().problem(site.agent))
        state = State.CRITICAL if problem else State.OK
        yield Finding("ssh agent", state, problem or f"{site.agent} holds keys")
    try:
        TrustedKeys(files=site.known_hosts)
    except ConfigError as error:
        yield Finding("ssh known_hosts", State.CRITICAL, str(error), "its keys are not trusted until then")
    else:
        if site.known_hosts:
            yield Finding("ssh known_hosts", State.OK, f"{count(len(site.known_hosts), 'file')} can be read")
        yield from look_at_hosts(store, hosts, targets, site)


def look_at_keys(paths: Sequence[Path], user: int | None, *, has_agent: bool) -> Finding:
    """Whether the keys can be used, also by the collector's user, whose number `user` is if it is another one."""
    if not paths:
        if has_agent:
            return Finding("ssh keys", State.OK, "none, but an ssh-agent")
        return Finding(
            "ssh keys", State.WARNING, "none, and no agent: nothing is asked", "set ssh.keys or ssh.agent"
        )
    wrong = [problem for path in paths if (problem := _problem_of_key(path, user))]
    if wrong:
        return Finding("ssh keys", State.CRITICAL, "; ".join(wrong))
    return Finding("ssh keys", State.OK, f"{listed(list(map(str, paths)))} can be used")


def look_at_hosts(
    store: Store, hosts: Sequence[SshHost], targets: Sequence[Target], site: Ssh
) -> Iterator[Finding]:
    """Whether somebody vouches for each host that is polled, and whether its settings make sense."""
    spoiled = [one.name for one in hosts if one.problem]
    if spoiled:
        text = f"the settings of {listed(spoiled)} make no sense"
        yield Finding("ssh settings", State.WARNING, text, f"run: collector-cli ssh add {spoiled[0]}")
    polled = {one.host for one in hosts if one.is_polled}
    asked = [target for target in targets if target.host in polled]
    if not asked:
        return
    with store.transaction(write=False) as tx:
        left = [one.name for one in untrusted(tx, asked, site)]
    if left:
        text = f"{len(left)} of {count(len(asked), 'polled host')} are not trusted: {listed(left)}"
        yield Finding("ssh hosts", State.WARNING, text, "run: collector-cli ssh trust --untrusted")
    else:
        yield Finding("ssh hosts", State.OK, f"{count(len(asked), 'polled host')}, all of them trusted")


def collectors_user(config: Config) -> int | None:
    """Whose files the collector reads, where root asks; None if that is whoever asks, or cannot be told."""
    if os.geteuid() != _ROOT:
        return None
    address = parse_url(config.database)
    places: Iterable[Path] = (
        config.identity.dir,
        *((address.path,) if isinstance(address, SqliteUrl) else ()),
    )
    for place in places:
        try:
            return place.stat().st_uid
        except OSError:
            continue
    return None


def _problem_of_key(path: Path, user: int | None) -> str:
    try:
        ClientKeys().load(path)
    except KeyUnusable as error:
        return str(error)
    owner = path.stat().st_uid
    if user not in (None, _ROOT, owner):
        return f"{path} is not the collector's user's, who cannot read it; run: chown {user} {path}"
    return ""


def _nobody() -> SshHost:
    return SshHost(0, "", "localhost", "", 0, 0, True, SshSettings(), ())
