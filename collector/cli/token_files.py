"""A folder with a token for each machine: NAME.token, readable by its owner only."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from collector.cli.session import CliError
from collector.identity.tokens import is_token

_MAX_SIZE = 1_000  # bytes; a token has 47


class TokenFolder:
    """Makes the folder if it is not there. Raises CliError, as its methods do."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = stat.S_IMODE(folder.stat().st_mode)
        except OSError as error:
            raise CliError(f"cannot make the directory {folder}: {error.strerror}") from None
        if mode & 0o077:
            raise CliError(f"{folder} is open to others (mode {mode:04o}); run: chmod 700 {folder}")

    def path(self, name: str) -> Path:
        """Where a machine's token is."""
        return self._folder / f"{name}.token"

    def read(self, name: str) -> str:
        """A machine's token; empty if there is none, or nothing that looks like one."""
        path = self.path(name)
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_SIZE).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise CliError(f"cannot read {path}: {error.strerror}") from None
        return text if is_token(text) else ""

    def remove(self, name: str) -> None:
        """A machine's token is of no use any more."""
        path = self.path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CliError(f"cannot remove {path}: {error.strerror}") from None

    def write(self, name: str, token: str) -> None:
        """Give a machine its token, in place of the one that it had."""
        path = self.path(name)
        aside = path.with_name(f"{path.name}.new")
        try:
            with suppress(FileNotFoundError):
                aside.unlink()
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{token}\n")
            aside.rename(path)
        except OSError as error:
            raise CliError(f"cannot write {path}: {error.strerror}; run the same again") from None
