"""Files that hold keys: read with bounds, closed to others, replaced as a whole."""

from __future__ import annotations

import errno
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


class Folder:
    """A directory of keys, opened once: what happens in it happens there, wherever its path leads later.

    Root may do this in a directory that belongs to the service, and whoever is the service can put
    anything into it at any moment: links are not followed there, and only what was just made here is
    given to the directory's owner.
    """

    def __init__(self, path: Path):
        """Raises OSError. Root does not follow a link to the directory: it may be anybody's."""
        no_link = os.O_NOFOLLOW if os.geteuid() == 0 else 0
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | no_link)
        self._owner = os.fstat(self.descriptor)
        self.is_foreign = os.geteuid() == 0 and self._owner.st_uid != 0
        """Whether its owner can do less than this process."""

    def close(self) -> None:
        """Forget it."""
        os.close(self.descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file: after a power cut it is the old one or the new one. Raises KeyringError."""
        aside, at = f"{name}.new", self.descriptor
        try:
            with suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=at)
            with os.fdopen(self.make(aside, os.O_WRONLY), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(aside, name, src_dir_fd=at, dst_dir_fd=at)
            os.fsync(at)
        except OSError as error:
            raise KeyringError(f"cannot write {self.path / name}: {error.strerror}") from None

    def make(self, name: str, flags: int) -> int:
        """The descriptor of a new file, for the directory's owner alone. Raises OSError."""
        descriptor = os.open(
            name, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor
        )
        try:
            if self.is_foreign:
                os.fchown(descriptor, self._owner.st_uid, self._owner.st_gid)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def read(path: Path, what: str, folder: Folder | None = None) -> bytes:
    """A whole file, in the opened directory if there is one. Raises KeyringError."""
    return _read(path, what, folder)[0]


def read_key(path: Path, what: str, folder: Folder | None = None, *, shared: bool = False) -> bytes:
    """A file that holds a private key; `shared`: its group may read it. Raises KeyringError."""
    data, seen = _read(path, what, folder)
    mode = stat.S_IMODE(seen.st_mode)
    if mode & (0o037 if shared else 0o077):
        raise KeyringError(
            f"{what}: {path} is open to others (mode {mode:04o}); run: chmod {'640' if shared else '600'} {path}"
        )
    return data


def _read(path: Path, what: str, folder: Folder | None) -> tuple[bytes, os.stat_result]:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # nobody's pipe holds this up
    is_foreign = folder is not None and folder.is_foreign
    try:
        if folder is None:
            descriptor = os.open(path, flags)
        else:
            descriptor = os.open(
                path.name, flags | (os.O_NOFOLLOW if is_foreign else 0), dir_fd=folder.descriptor
            )
        with os.fdopen(descriptor, "rb") as file:
            seen = os.fstat(descriptor)
            # What is read there may be written there: no file of somebody else, by way of a link.
            _require_plain(path, seen, may_have_links=not is_foreign)
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise KeyringError(f"{what}: cannot read {path}: {_reason(error)}") from None
    if len(data) > _MAX_SIZE:
        raise KeyringError(f"{what}: {path} has more than {_MAX_SIZE >> 10} KiB")
    return data, seen


def _require_plain(path: Path, seen: os.stat_result, *, may_have_links: bool) -> None:
    """Raises KeyringError."""
    if not stat.S_ISREG(seen.st_mode):
        raise KeyringError(f"{path} is no regular file; remove it")
    if seen.st_nlink > 1 and not may_have_links:
        raise KeyringError(
            f"{path} is a file with other names besides (a hard link); put a copy in its place"
        )


def _reason(error: OSError) -> str:
    return "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)


def prepare_folder(path: Path) -> None:
    """Make the directory if there is none, and see that nobody else can change what is in it.

    Raises KeyringError.
    """
    try:
        if not path.is_dir():
            if not path.parent.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
            _make_folder(path)
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise KeyringError(f"cannot make the directory {path}: {_reason(error)}") from None
    if mode & 0o022:
        raise KeyringError(f"{path} can be changed by others (mode {mode:04o}); run: chmod 700 {path}")


def _make_folder(path: Path) -> None:
    """For the owner of the directory that it is in. Raises OSError."""
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileExistsError):
            os.mkdir(path.name, 0o700, dir_fd=parent)
        made = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            owner = os.fstat(parent)
            # By now it may be another: one with something in it is not ours to give.
            if os.geteuid() == 0 and os.fstat(made).st_uid == 0 and not os.listdir(made):  # noqa: PTH208 - a descriptor
                os.fchown(made, owner.st_uid, owner.st_gid)
        finally:
            os.close(made)
    finally:
        os.close(parent)


@contextmanager
def locked(path: Path) -> Iterator[Folder]:
    """The directory, which every other process is kept from changing meanwhile. Raises KeyringError."""
    try:
        folder = Folder(path)
    except OSError as error:
        if path.is_symlink():
            raise KeyringError(
                f"{path} is a symbolic link, which root does not follow; have identity.dir name the directory itself"
            ) from None
        raise KeyringError(f"cannot lock {path}: {error.strerror}") from None
    try:
        lock = _open_lock(folder)
        try:
            _take(lock, path)
            yield folder
        finally:
            os.close(lock)
    finally:
        folder.close()


def _open_lock(folder: Folder) -> int:
    """Raises KeyringError."""
    path = folder.path / "lock"
    try:
        try:
            return folder.make(path.name, os.O_RDWR)
        except FileExistsError:
            lock = os.open(path.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.descriptor)
    except OSError as error:
        raise KeyringError(f"cannot lock {folder.path}: {path}: {_reason(error)}") from None
    try:
        _require_plain(path, os.fstat(lock), may_have_links=False)
    except KeyringError:
        os.close(lock)
        raise
    return lock


def _take(lock: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise KeyringError(
                    f"another process has been changing {path} for more than {_LOCK_PATIENCE:g} s;"
                    f" see: fuser {path / 'lock'}"
                ) from None
        except OSError as error:
            raise KeyringError(f"cannot lock {path}: {error.strerror}") from None
        else:
            return
        time.sleep(_LOCK_LOOK)


def stamp(paths: Iterable[Path]) -> tuple[object, ...]:
    """What changes when one of the files is replaced."""
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns
