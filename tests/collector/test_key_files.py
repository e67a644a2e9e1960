"""Root keeps keys in a directory of the service's: whoever is the service gets nothing else by that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from collector.config import Identity
from collector.identity import key_files
from collector.identity.authority import Authority
from collector.identity.key_files import Folder, KeyringError, locked, prepare_folder
from collector.identity.keyring import Keyring

SERVICE = 4711
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The service's, if this is root."""
    folder = tmp_path / "identity"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, SERVICE, SERVICE)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "shadow"
    victim.write_text("secret")
    victim.chmod(0o600)
    return victim


def keyring(folder: Path) -> Keyring:
    return Keyring(Identity(dir=folder), lambda: ["localhost"])


def owner(path: Path) -> int:
    return path.lstat().st_uid


def pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (Path.symlink_to, "symbolic link"),
        (Path.hardlink_to, "a hard link"),
        (pipe, "no regular file"),
    ],
)
def test_a_lock_that_somebody_has_planted(
    folder: Path, victim: Path, plant: Callable[[Path, Path], None], said: str
) -> None:
    plant(folder / "lock", victim)
    with pytest.raises(KeyringError, match=said):
        keyring(folder).open()
    assert (owner(victim), victim.read_text()) == (os.geteuid(), "secret")
    assert [path.name for path in folder.iterdir()] == ["lock"]


@needs_root
def test_a_lock_of_somebody_else_is_used_and_not_given_away(folder: Path) -> None:
    (folder / "lock").touch()
    keyring(folder).open()
    assert {path.name: owner(path) for path in folder.iterdir()} == {
        "lock": 0,
        "ca.key": SERVICE,
        "ca.pem": SERVICE,
        "server.pem": SERVICE,
    }


@needs_root
def test_a_file_that_is_exchanged_while_it_is_written(
    folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def exchange(descriptor: int) -> None:
        fsync(descriptor)
        if (folder / "ca.key.new").exists():
            (folder / "ca.key.new").unlink()
            (folder / "ca.key.new").symlink_to(victim)

    monkeypatch.setattr(key_files.os, "fsync", exchange)
    with locked(folder) as opened:
        opened.write("ca.key", b"key")
    assert owner(victim) == 0
    assert victim.read_text() == "secret"


def test_a_directory_that_is_exchanged_while_it_is_open(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with locked(folder) as opened:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)
        opened.write("ca.key", b"key")
        with pytest.raises(KeyringError, match="No such file"):
            key_files.read(folder / "ca.pem", "the CA's certificate", opened)
        assert key_files.read(folder / "ca.key", "the CA's key", opened) == b"key"
    assert not list(other.iterdir())


@needs_root
@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_root_takes_no_key_of_somebody_elses_for_the_service(
    folder: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    theirs = tmp_path / "their.key"
    theirs.write_bytes(Authority.create(1_800_000_000_000).key_pem)
    theirs.chmod(0o600)
    plant(folder / "ca.key", theirs)
    with pytest.raises(KeyringError, match=r"ca\.key.* link"):
        keyring(folder).open()
    assert not (folder / "ca.pem").exists()


@needs_root
def test_root_follows_no_link_to_a_directory(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(KeyringError, match=r"which root does not follow; have identity\.dir name"):
        keyring(link).open()
    assert not list(folder.iterdir())


@needs_root
def test_a_directory_that_is_exchanged_before_it_is_given_away(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    mkdir = os.mkdir

    def exchange(name: str, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        (folder / "new").rmdir()
        (folder / "new").symlink_to(theirs)

    monkeypatch.setattr(key_files.os, "mkdir", exchange)
    with pytest.raises(KeyringError, match="cannot make the directory"):
        prepare_folder(folder / "new")
    assert owner(theirs) == 0


def test_a_pipe_in_place_of_a_file_holds_nobody_up(folder: Path) -> None:
    keyring(folder).open()
    (folder / "ca.pem").unlink()
    os.mkfifo(folder / "ca.pem")
    with pytest.raises(KeyringError, match=r"ca\.pem is no regular file"):
        keyring(folder).load()


def test_a_key_that_vanishes_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its permissions are those of the file that was read, not of whatever is called so later."""
    key = folder / "site.key"
    key.write_bytes(b"key")
    key.chmod(0o600)

    def gone(path: Path) -> os.stat_result:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "stat", gone)
    assert key_files.read_key(key, "the key") == b"key"


def test_an_opened_directory_is_let_go(folder: Path) -> None:
    opened = Folder(folder)
    opened.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened.descriptor)
