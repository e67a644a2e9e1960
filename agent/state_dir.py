"""The directory that holds the agent's identity and spool, for one agent at a time."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ASIDE = re.compile(r"\.[\w.]+\.[0-9a-f]{16}")


class StateDirError(Exception):
    """The state directory cannot be used; the text says why."""


class StateDirInUseError(StateDirError):
    """Another agent uses the state directory."""


@contextmanager
def claimed(state_dir: Path) -> Iterator[None]:
    """Make the directory if there is none, and keep every other agent out of it meanwhile.

    The kernel drops the lock with the process, however that ends. Raises StateDirError.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(state_dir) as directory:
            descriptor = _open_lock(state_dir, directory)
    except OSError as error:
        raise StateDirError(f"cannot use the state directory {state_dir}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise StateDirInUseError(
                f"another agent{f' (process {owner})' if owner else ''} already uses {state_dir};"
                " give each its own state_dir"
            ) from None
        except OSError as error:
            raise StateDirError(f"cannot lock {state_dir}: {error.strerror}") from None
        with suppress(OSError):  # a full disk: who holds it is only told, the lock itself takes no room
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _remove_leftovers(state_dir)
        yield
    finally:
        os.close(descriptor)


def write_aside(path: Path, data: bytes) -> Path:
    """Flush `data` to a new file beside `path`, for the directory's owner alone; the new file's path.

    `put_in_place` moves it to `path`. Raises OSError.
    """
    name = f".{path.name}.{secrets.token_hex(8)}"
    with _opened(path.parent) as directory:
        descriptor = _make_file(name, os.O_WRONLY, directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            raise
    return path.with_name(name)


def put_in_place(aside: Path, path: Path) -> None:
    """Move what `write_aside` made. After a power cut `path` is the old file or the new one, whole.

    Raises OSError.
    """
    with _opened(path.parent) as directory:
        os.rename(aside.name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)


def _remove_leftovers(state_dir: Path) -> None:
    """What `write_aside` made for agents that were killed before they could put it in place."""
    with suppress(OSError), _opened(state_dir) as directory:
        for name in [entry.name for entry in os.scandir(directory) if _ASIDE.fullmatch(entry.name)]:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)


def flush_directory(path: Path) -> None:
    """Have the disk know the names in a directory. Raises OSError."""
    with _opened(path) as directory:
        os.fsync(directory)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A directory's descriptor: what happens by it happens in there, wherever the path leads later."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def _make_file(name: str, flags: int, directory: int) -> int:
    """A file that was not there. Root makes it in somebody else's directory for them. Raises OSError."""
    descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        owner = os.fstat(directory)
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_lock(state_dir: Path, directory: int) -> int:
    """Raises OSError or StateDirError."""
    try:
        return _make_file("lock", os.O_RDWR, directory)
    except FileExistsError:
        # Nobody's link, of either kind: root may do this in a directory that is somebody else's.
        descriptor = os.open("lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink > 1:
        os.close(descriptor)
        raise StateDirError(f"{state_dir / 'lock'} is no file of its own; remove it")
    return descriptor
