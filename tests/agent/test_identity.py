from __future__ import annotations

import shutil
import stat
import subprocess
import uuid
from pathlib import Path

import pytest

from agent.identity import IdentityError, load_identity, stored_host_id
from fleetpulse.machine import fingerprint as fingerprints
from fleetpulse.machine.fingerprint import machine_fingerprint


def test_the_first_start_makes_an_id_and_later_ones_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "host_id"
    host_id = stored_host_id(path)
    assert uuid.UUID(host_id).version == 4
    assert stored_host_id(path) == host_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["host_id"]


@pytest.mark.parametrize("content", ["", "not an id\n", "6a7e1b0c6f0d4f6d8f2b0d6d5a9b1c11\n", "\x00" * 37])
def test_a_malformed_id_is_an_error_and_is_never_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "host_id"
    path.write_text(content)
    with pytest.raises(IdentityError, match="should hold the host's UUID"):
        stored_host_id(path)
    assert path.read_text() == content


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "host_id").write_bytes(b"\xff\xfe")
    with pytest.raises(IdentityError, match="not text"):
        stored_host_id(tmp_path / "host_id")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"cannot store the host's id .*No such file"):
        stored_host_id(tmp_path / "missing" / "host_id")


def test_the_fingerprint_is_systemds() -> None:
    tool = shutil.which("systemd-id128")
    machine_id = Path("/etc/machine-id")
    if tool is None or not machine_id.exists() or not machine_id.read_text().strip():
        pytest.skip("needs systemd-id128 and a machine id")
    app_id = fingerprints._APP_ID.hex
    shown = subprocess.run(
        [tool, "machine-id", f"--app-specific={app_id}"], capture_output=True, text=True, check=True
    )
    assert machine_fingerprint(machine_id.read_text().strip()) == shown.stdout.strip()


def test_the_fingerprint_of_a_known_machine() -> None:
    fingerprint = machine_fingerprint("0123456789abcdef0123456789abcdef")
    assert len(fingerprint) == 32
    assert uuid.UUID(fingerprint).version == 4
    assert "0123456789abcdef" not in fingerprint
    assert machine_fingerprint("") == machine_fingerprint("uninitialized") == ""


def test_the_whole_identity(tmp_path: Path) -> None:
    whole = load_identity(tmp_path, "override")
    assert whole.hostname == "override"
    assert whole.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert load_identity(tmp_path).host_id == whole.host_id
