"""What an ssh_config file (man 5 ssh_config) says of a host, as settings."""

from __future__ import annotations

import getpass
import threading
from collections.abc import Collection
from pathlib import Path

from asyncssh import ConfigParseError
from asyncssh.config import SSHClientConfig

from collector.core.ssh_settings import LONGEST_POLL, OPTIONS, SettingsError, SshSettings, check
from fleetpulse.config import ConfigError

_AT_ONCE = 20  # names that are looked for without a thread; each may take 30 ms
_MOST = 200_000  # hosts whose settings are remembered


class SshConfigFile:
    """One file. It is read again when it has changed."""

    def __init__(self, path: Path):
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, SshSettings | ConfigError] = {}
        self._reader: threading.Thread | None = None

    def settings_of(self, name: str) -> SshSettings:
        """Of the host that is called so. Raises ConfigError."""
        self._look_at_file()
        known = self._known.get(name)
        if known is None:
            self._known[name] = known = self._read(name)
        if isinstance(known, ConfigError):
            raise known
        return known

    def is_ready(self, names: Collection[str]) -> bool:
        """Whether `settings_of` has the answers for these; if not, a thread is finding them."""
        if self._reader is not None and self._reader.is_alive():
            return False
        try:
            self._look_at_file()
        except ConfigError:
            return True  # which `settings_of` tells
        missing = [name for name in names if name not in self._known]
        if len(missing) <= _AT_ONCE:
            return True
        self._reader = threading.Thread(
            target=self._read_all, args=(missing,), name="ssh-config", daemon=True
        )
        self._reader.start()
        return False

    def _read_all(self, names: Collection[str]) -> None:
        stamp = self._stamp
        for name in names:
            if stamp != self._stamp:
                return
            self._known.setdefault(name, self._read(name))

    def _look_at_file(self) -> None:
        """Forget what is known if the file has changed. Raises ConfigError if it is not there."""
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(f"ssh.config_file: cannot read {self._path}: {error.strerror}") from None
        stamp = status.st_mtime_ns, status.st_size
        if stamp != self._stamp or len(self._known) >= _MOST:
            self._known = {}
            self._stamp = stamp

    def _read(self, name: str) -> SshSettings | ConfigError:
        try:
            return self._parse(name)
        except OSError as error:
            return ConfigError(f"ssh.config_file: cannot read {self._path}: {error.strerror}")
        except (ConfigParseError, SettingsError) as error:
            return ConfigError(f"ssh.config_file: {self._path}, for {name}: {error}")

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
