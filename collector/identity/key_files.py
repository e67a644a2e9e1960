"""Files that hold keys: read with bounds, closed to others, replaced as a whole."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_SIZE = 64 << 10  # bytes; a certificate has about 1,000
_LOCK_PATIENCE = 10.0  # seconds that another process may take to change something
_LOCK_LOOK = 0.02


class KeyringError(Exception):
    """Certificates or keys cannot be used; the text says which file, what is wrong, and what to do."""


def read(path: Path, what: str) -> bytes:
    """A whole file. Raises KeyringError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise KeyringError(f"{what}: cannot read {path}: {error.strerror}") from None
    if len(data) > _MAX_SIZE:
        raise KeyringError(f"{what}: {path} has more than {_MAX_SIZE >> 10} KiB")
    return data


def read_key(path: Path, what: str, *, shared: bool = False) -> bytes:
    """A file that holds a private key; `shared`: its group may read it. Raises KeyringError."""
    data = read(path, what)
    if problem := permission_problem(path, shared=shared):
        raise KeyringError(f"{what}: {problem}")
    return data


def permission_problem(path: Path, *, shared: bool = False) -> str:
    """Who else may use a private key, and what to do against it; empty if nobody may."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (0o037 if shared else 0o077):
        return f"{path} is open to others (mode {mode:04o}); run: chmod {'640' if shared else '600'} {path}"
    return ""


def prepare_folder(folder: Path) -> None:
    """Make the directory if there is none, and see that nobody else can change what is in it.

    Raises KeyringError.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _give_to_owner_of(folder.parent, folder)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise KeyringError(f"cannot make the directory {folder}: {error.strerror}") from None
    if mode & 0o022:
        raise KeyringError(f"{folder} can be changed by others (mode {mode:04o}); run: chmod 700 {folder}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from changing the directory meanwhile. Raises KeyringError."""
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KeyringError(f"cannot lock {folder}: {error.strerror}") from None
    try:
        _give_to_owner_of(folder, path)
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KeyringError(
                        f"another process has been changing {folder} for more than {_LOCK_PATIENCE:g} s; see: fuser {path}"
                    ) from None
            time.sleep(_LOCK_LOOK)
        yield
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes) -> None:
    """Replace a file: after a power cut it is the old one or the new one. Raises KeyringError."""
    aside = path.with_name(f"{path.name}.new")
    try:
        with suppress(FileNotFoundError):
            aside.unlink()
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _give_to_owner_of(path.parent, aside)
        aside.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyringError(f"cannot write {path}: {error.strerror}") from None


def stamp(paths: Iterable[Path]) -> tuple[object, ...]:
    """What changes when one of the files is replaced."""
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _give_to_owner_of(folder: Path, path: Path) -> None:
    """What root makes in the service's directory must be readable by the service."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
