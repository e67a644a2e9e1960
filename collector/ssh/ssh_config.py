"""What an ssh_config file (man 5 ssh_config) says of a host, as settings."""

from __future__ import annotations

import getpass
from pathlib import Path

from asyncssh import ConfigParseError
from asyncssh.config import SSHClientConfig

from collector.core.ssh_settings import LONGEST_POLL, OPTIONS, SettingsError, SshSettings, check
from fleetpulse.config import ConfigError

_MOST = 200_000  # hosts whose settings are remembered


class SshConfigFile:
    """One file. It is read again when it has changed."""

    def __init__(self, path: Path):
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, SshSettings] = {}

    def settings_of(self, name: str) -> SshSettings:
        """Of the host that is called so. Raises ConfigError."""
        try:
            status = self._path.stat()
            stamp = status.st_mtime_ns, status.st_size
            if stamp != self._stamp or len(self._known) >= _MOST:
                self._known.clear()
                self._stamp = stamp
            if name not in self._known:
                self._known[name] = self._parse(name)
        except OSError as error:
            raise ConfigError(f"ssh.config_file: cannot read {self._path}: {error.strerror}") from None
        except (ConfigParseError, SettingsError) as error:
            raise ConfigError(f"ssh.config_file: {self._path}, for {name}: {error}") from None
        return self._known[name]

    def _parse(self, name: str) -> SshSettings:
        # There is no public way to ask asyncssh what a file says; a connection's options would load keys.
        parsed = SSHClientConfig.load(
            None, [str(self._path)], False, False, False, getpass.getuser(), (), name, ()
        )
        keys = parsed.get("IdentityFile") or []
        assert isinstance(keys, list)
        settings = SshSettings(
            address=str(parsed.get("Hostname") or ""),
            port=int(str(parsed.get("Port") or 0)),
            user=str(parsed.get("User") or ""),
            key=str(Path(str(keys[0])).expanduser()) if keys else "",
            jump=str(parsed.get("ProxyJump") or ""),
            timeout=min(int(str(parsed.get("ConnectTimeout") or 0)), int(LONGEST_POLL)) * 1000,
            options={option: str(value) for option in OPTIONS if (value := parsed.get(option))},
        )
        check(settings)
        return settings
