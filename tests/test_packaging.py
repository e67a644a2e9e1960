"""What a user installs: the wheel, its programs, the locks and the names of the make targets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fleetpulse

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROGRAMS = sorted(PYPROJECT["project"]["scripts"])
LOCKS = ("build", "agent", "collector", "mysql", "dev")
# The parts of the suite that need nothing but the packages themselves.
TESTS_OF_THE_WHEEL = ("tests/agent/checks", "tests/collector/test_diff.py", "tests/collector/test_silence.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, which goes before the tree that is installed in place."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--no-index",
            "--target",
            str(folder),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    return folder


def outside(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}


def expected_files() -> set[str]:
    """Every file of the three packages that is no by-product of running them."""
    folders = {
        "agent": ROOT / "agent",
        "collector": ROOT / "collector",
        "fleetpulse": ROOT / "proto" / "fleetpulse",
    }
    return {
        f"{name}/{path.relative_to(folder)}"
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected_files()


@pytest.mark.parametrize("package", ["agent", "collector", "fleetpulse"])
def test_the_wheel_says_that_it_is_typed(wheel, package):
    assert f"{package}/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_what_is_not_python(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "collector/store/migrations/0001.mysql.sql",
        "collector/store/migrations/0001.sqlite.sql",
        "collector/default_rules.toml",
        "fleetpulse/v1/ingest.proto",
        "fleetpulse/v1/ingest_pb2.pyi",
        "fleetpulse/v1/ingest_pb2_grpc.pyi",
    } <= names


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_wheel_says_its_version(installed, tmp_path, program):
    done = subprocess.run(
        [installed / "bin" / program, "--version"],
        cwd=tmp_path,
        env=outside(installed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == fleetpulse.__version__


def test_the_collector_of_the_wheel_makes_its_database(installed, tmp_path):
    """The schema is read from the installed files."""
    done = subprocess.run(
        [installed / "bin" / "collector-cli", "db", "upgrade"],
        cwd=tmp_path,
        env=outside(installed) | {"FLEETPULSE_DATABASE": f"sqlite:///{tmp_path}/fleet.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fleet.db").stat().st_size > 0


def test_tests_pass_on_the_wheel(installed, tmp_path):
    tests = [str(ROOT / path) for path in TESTS_OF_THE_WHEEL]
    place = (
        "import agent, collector, fleetpulse; print(agent.__file__, collector.__file__, fleetpulse.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", place],
        cwd=tmp_path,
        env=outside(installed),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(installed)) for path in found.stdout.split())
    done = subprocess.run(
        # Without the setting that puts the tree first.
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "-o", "pythonpath=", *tests],
        cwd=tmp_path,
        env=outside(installed),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_installed_version_is_that_of_the_package():
    assert metadata.version("fleetpulse") == fleetpulse.__version__


def test_the_changelog_knows_this_version():
    version = fleetpulse.__version__
    heading = "Unreleased" if "dev" in version else version
    assert f"\n## [{heading}]\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_place_and_pins_every_package_with_its_hashes(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    assert "@" not in text
    assert "/" not in text
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", text).strip())
    assert entries
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+", entry), entry
        assert "--hash=sha256:" in entry


def test_the_locks_agree_with_each_other():
    pins: dict[str, set[str]] = {}
    for name in LOCKS:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        for package, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text):
            pins.setdefault(package, set()).add(version)
    assert {package: versions for package, versions in pins.items() if len(versions) > 1} == {}


def test_only_the_mysql_lock_needs_a_compiler():
    locks = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in LOCKS}
    assert [name for name, text in locks.items() if "\nmysqlclient==" in text] == ["mysql"]


def test_a_changed_dependency_puts_every_lock_out_of_step(tmp_path):
    for part in ("pyproject.toml", "requirements", "tools"):
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    check = [sys.executable, tmp_path / "tools" / "locks.py", "check"]
    in_step = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (in_step.returncode, in_step.stdout) == (0, "")
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"psutil>=7,<8"', '"psutil>=8,<9"'))
    changed = subprocess.run(check, capture_output=True, text=True, check=False)
    assert changed.returncode == 1
    for name in LOCKS:
        assert f"requirements/{name}.txt is older than pyproject.toml; run: make lock" in changed.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_every_target():
    # A make that runs these tests hands its own flags down.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    listed = re.findall(r"(?m)^  make (\S+) +\S", done.stdout)
    [phony] = re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text())
    assert listed == phony.split()
