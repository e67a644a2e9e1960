"""The state directory: one agent at a time, and nothing in it gives its owner more than is theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.state_dir import StateDirError, StateDirInUseError, claimed, put_in_place, write_aside

AGENT = 4711
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """The agent's, if this is root."""
    state_dir = tmp_path / "state"
    state_dir.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(state_dir, AGENT, AGENT)
    return state_dir


def pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


def test_one_agent_at_a_time(state_dir: Path) -> None:
    for _ in range(2):
        with claimed(state_dir):
            with (
                pytest.raises(StateDirInUseError, match=rf"process {os.getpid()}\) already uses"),
                claimed(state_dir),
            ):
                pass
            assert (state_dir / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to, pipe])
def test_a_lock_that_somebody_has_planted(
    state_dir: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "shadow"
    victim.write_text("secret")
    plant(state_dir / "lock", victim)
    with pytest.raises(StateDirError), claimed(state_dir):
        pass
    assert (victim.stat().st_uid, victim.read_text()) == (os.geteuid(), "secret")


@needs_root
def test_what_root_makes_belongs_to_the_agent_and_nothing_else_does(state_dir: Path) -> None:
    (state_dir / "theirs").touch()
    with claimed(state_dir):
        put_in_place(write_aside(state_dir / "host_id", b"x"), state_dir / "host_id")
    assert {path.name: path.stat().st_uid for path in state_dir.iterdir()} == {
        "lock": AGENT,
        "host_id": AGENT,
        "theirs": 0,
    }


@needs_root
def test_a_directory_that_is_exchanged_while_a_file_is_written(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is made where its owner comes from."""
    other = tmp_path / "other"
    other.mkdir()
    open_file = os.open

    def exchange(path: str | Path, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_CREAT:
            state_dir.rename(tmp_path / "moved")
            state_dir.symlink_to(other)
        return open_file(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", exchange)
    aside = write_aside(state_dir / "host_id", b"x")
    assert not list(other.iterdir())
    [made] = (tmp_path / "moved").iterdir()
    assert (made.name, made.stat().st_uid) == (aside.name, AGENT)
