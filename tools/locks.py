#!/usr/bin/env python3
"""Write the locked requirements from pyproject.toml, or check that they are in step with it.

`write` needs uv and the package registry. `check` only compares hashes: it works offline, at once,
and with nothing installed.

    requirements/build.txt      the build backend, so that the project itself installs without a download
    requirements/agent.txt      the base install
    requirements/collector.txt  + the extra "collector"
    requirements/mysql.txt      + the extra "mysql"; needs a C compiler and the MariaDB client headers
    requirements/dev.txt        + the extra "dev", without the driver of mysql.txt, so that it installs anywhere
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("build", "agent", "collector", "mysql", "dev")
OLDEST_PYTHON = "3.11"
_MADE_FROM = "# Dependencies in pyproject.toml: sha256:"


class LockError(Exception):
    """A lock cannot be made; the text is the resolver's."""


def dependencies_hash(pyproject: Path) -> str:
    """The SHA-256 of every table of pyproject.toml that a lock is made from."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project = data["project"]
    tables = [
        data["build-system"]["requires"],
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
    ]
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def out_of_step() -> list[str]:
    """What is wrong with the locks, one line each."""
    wanted = dependencies_hash(ROOT / "pyproject.toml")
    problems = []
    for name in LOCKS:
        path = REQUIREMENTS / f"{name}.txt"
        if not path.is_file():
            problems.append(f"requirements/{name}.txt is missing; run: make lock")
        elif f"{_MADE_FROM}{wanted}\n" not in path.read_text(encoding="utf-8"):
            problems.append(f"requirements/{name}.txt is older than pyproject.toml; run: make lock")
    return problems


def write(*, upgrade: bool) -> None:
    """Resolve every lock. Versions already locked are kept unless `upgrade`. Raises LockError."""
    REQUIREMENTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # One resolution of everything first, so that the locks agree and go into one environment.
        everything = Path(folder) / "everything.txt"
        before = [REQUIREMENTS / f"{name}.txt" for name in LOCKS]
        if not upgrade:
            # uv keeps the versions that it finds in its output file; hashes are not needed for that.
            everything.write_text(
                "".join(_pins(path.read_text(encoding="utf-8")) for path in before if path.is_file()),
                encoding="utf-8",
            )
        everything.write_text(
            _resolve(["pyproject.toml", "--extra", "dev"], output=everything), encoding="utf-8"
        )
        build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"][
            "requires"
        ]
        backend = Path(folder) / "build.in"
        backend.write_text("\n".join(build) + "\n", encoding="utf-8")
        sources = {
            "build": [str(backend)],
            "agent": ["pyproject.toml"],
            "collector": ["pyproject.toml", "--extra", "collector"],
            "mysql": ["pyproject.toml", "--extra", "mysql"],
            "dev": ["pyproject.toml", "--extra", "dev", "--no-emit-package", "mysqlclient"],
        }
        header = f'# Written by "make lock"; do not edit.\n{_MADE_FROM}{dependencies_hash(ROOT / "pyproject.toml")}\n'
        for name in LOCKS:
            text = _resolve([*sources[name], "--constraints", str(everything)], hashes=True)
            (REQUIREMENTS / f"{name}.txt").write_text(header + text, encoding="utf-8")
            print(f"requirements/{name}.txt: {len(_pins(text).splitlines())} packages")


def _resolve(sources: list[str], *, hashes: bool = False, output: Path | None = None) -> str:
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", *sources]
    if hashes:
        command.append("--generate-hashes")
    if output is not None:
        command += ["--output-file", str(output)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LockError("uv is not installed; run: make lock") from None
    if done.returncode:
        raise LockError(done.stderr.strip())
    return done.stdout if output is None else output.read_text(encoding="utf-8")


def _pins(lock: str) -> str:
    """The lines `name==version` of a lock, without its hashes and comments."""
    return "".join(line.removesuffix("\\").rstrip() + "\n" for line in lock.splitlines() if "==" in line)


def main() -> int:
    """Exit code 1 when a lock is out of step or cannot be made."""
    parser = argparse.ArgumentParser(description="Write or check the locked requirements.")
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows"
    )
    options = parser.parse_args()
    if options.action == "check":
        problems = out_of_step()
        print(*problems, sep="\n", end="\n" if problems else "")
        return 1 if problems else 0
    try:
        write(upgrade=options.upgrade)
    except LockError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
