"""The directory that holds the agent's identity and spool, for one agent at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        # Nobody's link, either: root may do this in a directory that is somebody else's.
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateDirError(f"cannot use the state directory {state_dir}: {error.strerror}") from None
    try:
        give_to_owner(descriptor, state_dir)
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
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def give_to_owner(descriptor: int, directory: Path) -> None:
    """For root: a file just made in somebody else's directory is theirs, so that their agent can use it."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def write_aside(path: Path, data: bytes) -> Path:
    """Flush `data` to a new file beside `path`, for the directory's owner alone; the new file's path.

    `put_in_place` moves it to `path`. Raises OSError.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            give_to_owner(file.fileno(), path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def put_in_place(aside: Path, path: Path) -> None:
    """After a power cut `path` is the old file or the new one, whole. Raises OSError."""
    aside.rename(path)
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Have the disk know the names in a directory. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
