"""The directory that holds the agent's identity and spool, for one agent at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StateDirError(Exception):
    """The state directory cannot be used; the text says why."""


@contextmanager
def claimed(state_dir: Path) -> Iterator[None]:
    """Make the directory if there is none, and keep every other agent out of it meanwhile.

    The kernel drops the lock with the process, however that ends. Raises StateDirError.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateDirError(f"cannot use the state directory {state_dir}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise StateDirError(
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
