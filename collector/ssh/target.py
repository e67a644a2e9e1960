"""How a host is reached, once all that was said of it, its groups and the site is put together."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from collector.config import Ssh
from collector.core.ssh_settings import SshSettings, merge
from collector.store.ssh_hosts import SshHost

if TYPE_CHECKING:
    from collector.ssh.ssh_config import SshConfigFile

_INTERVALS = 3  # that may pass without a report before a polled host counts as silent


class Hop(NamedTuple):
    """A jump host. `user` and `port` may be empty: as ssh_config says, else the target's user and 22."""

    user: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """One host as a connection needs it. Times in seconds; `name` is what its record is called."""

    host: int
    host_id: str
    name: str
    address: str
    port: int
    user: str
    keys: tuple[Path, ...]
    agent: Path | None
    jump: tuple[Hop, ...]
    interval: float
    timeout: float
    options: Mapping[str, str]
    limited_groups: tuple[tuple[str, int], ...] = ()
    """Groups of which only so many may be polled at once."""

    @property
    def ttl(self) -> float:
        """For how long a polled host may be without a report."""
        return _INTERVALS * self.interval + self.timeout

    @property
    def key_alias(self) -> str:
        """The name under which the host's key is known, besides its address."""
        return self.options.get("HostKeyAlias", self.name)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        via = f" through {self.jump[-1].host}" if self.jump else ""
        return f"{self.user}@{self.address}:{self.port}{via}"


class Resolver:
    """Puts settings together: the host's own, its groups' by their names, the ssh_config file's, the site's."""

    def __init__(self, site: Ssh):
        self._site = site
        self._file: SshConfigFile | None = None
        if site.config_file:
            # Not above: it loads asyncssh, which a command that only lists hosts does without.
            from collector.ssh.ssh_config import SshConfigFile

            self._file = SshConfigFile(site.config_file)
        self._user = site.user or getpass.getuser()

    @property
    def timeout(self) -> float:
        """The site's, in seconds."""
        return float(self._site.timeout)

    def is_ready(self, names: Collection[str]) -> bool:
        """Whether the settings of hosts that are called so are at hand; if not, they are read in the background.

        The whole of a large ssh_config file is gone through for each name.
        """
        return self._file is None or self._file.is_ready(names)

    def settings(self, host: SshHost, groups: Mapping[str, SshSettings]) -> SshSettings:
        """What holds for a host. Raises ConfigError if the ssh_config file cannot be used."""
        of_groups = [groups[name] for name in host.groups if name in groups]
        of_file = [self._file.settings_of(host.name)] if self._file else []
        return merge([host.settings, *of_groups, *of_file, self._of_site()])

    def target(self, host: SshHost, groups: Mapping[str, SshSettings]) -> Target:
        """A host as a connection needs it. Raises ConfigError like `settings`."""
        settings = self.settings(host, groups)
        site = self._site
        return Target(
            host.host,
            host.host_id,
            host.name,
            settings.address or host.address or host.name,
            settings.port or 22,
            settings.user or self._user,
            (_key_file(settings.key),) if settings.key else site.keys,
            site.agent,
            parse_jump("" if settings.jump == "none" else settings.jump),
            settings.interval / 1000,
            settings.timeout / 1000,
            settings.options,
            tuple(
                (name, groups[name].concurrency)
                for name in host.groups
                if name in groups and groups[name].concurrency
            ),
        )

    def hop(self, hop: Hop, user: str) -> Hop:
        """A jump host with what the ssh_config file says of it."""
        of_file = self._file.settings_of(hop.host) if self._file else SshSettings()
        return Hop(
            hop.user or of_file.user or user,
            of_file.address or hop.host,
            hop.port or of_file.port or 22,
        )

    def _of_site(self) -> SshSettings:
        site = self._site
        return SshSettings(
            port=site.port,
            user=site.user,
            jump=site.jump,
            interval=site.interval.milliseconds,
            timeout=site.timeout.milliseconds,
            fallback=site.fallback,
        )


def parse_jump(text: str) -> tuple[Hop, ...]:
    """From [USER@]HOST[:PORT] or several with commas, the first hop first; a checked setting."""
    return tuple(_hops(text.split(","))) if text else ()


def _key_file(text: str) -> Path:
    """Inventories write ~, which is the home of the collector's user here."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of nobody whom this machine knows
        return Path(text)


def _hops(parts: Iterable[str]) -> Iterable[Hop]:
    for part in parts:
        user, _, place = part.strip().rpartition("@")
        host, colon, port = place.rpartition(":")
        if not colon or place.endswith("]"):
            host, port = place, ""
        yield Hop(user, host.strip("[]"), int(port or 0))
