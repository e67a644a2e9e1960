"""Releases to roll out: this checkout's, the one before it, and some that do not do.

A release that is not the checkout's is one that was packed again with another version and other lines.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from fleetpulse import __version__
from tests.processes import ROOT

PYTHON = "3.11"
"""What the machines have."""

PREVIOUS = "0.2.0"
_PREVIOUS_WHEEL = ROOT / "tests" / "releases" / f"fleetpulse-{PREVIOUS}-py3-none-any.whl"
_VERSION_FILE = "fleetpulse/__init__.py"

_SERVES = "def run(config: AgentConfig) -> None:\n"
Edits = Mapping[str, tuple[str, str]]
"""By file, one text and what stands in its place."""

CRASHES: Edits = {"agent/service.py": (_SERVES, _SERVES + '    raise SystemExit("this release is broken")\n')}
"""An agent that ends at once."""

_DELIVERS = "delivering = asyncio.create_task(delivery.run())"
SAYS_NOTHING: Edits = {
    "agent/service.py": (_DELIVERS, "delivering = asyncio.create_task(asyncio.sleep(10**9))")
}
"""An agent that starts, and seems to be well, and delivers nothing."""

_LISTENS = 'notifier.tell(systemd.READY, systemd.status(f"listening on {address}"))'
DOES_NOT_LISTEN: Edits = {"collector/service.py": (_LISTENS, 'raise OSError("this release is broken")')}
"""A collector that does not come up."""


def missing_python() -> str:
    """Why releases of this checkout cannot run on the machines; empty if they can."""
    here = "{}.{}".format(*sys.version_info)
    return (
        ""
        if here == PYTHON
        else f"the machines have Python {PYTHON}, and the MariaDB driver is built for {here}"
    )


def build(folder: Path) -> None:
    """Make this checkout's archives, and those of the release before, as `make dist` does."""
    for wheel in (str(_PREVIOUS_WHEEL), ""):  # VERSION is of the last one
        environ = {
            **os.environ,
            "DIST": str(folder),
            "WHEEL": wheel,
            "PYTHONS": PYTHON,
            "ARCHS": os.uname().machine,
        }
        subprocess.run(
            ["sh", "tools/dist.sh"], cwd=ROOT, env=environ, check=True, capture_output=True, timeout=600
        )


def archive(name: str, version: str) -> str:
    """What a release's archive is called."""
    return f"fleetpulse-{name}-{version}-cp{PYTHON.replace('.', '')}-{os.uname().machine}.tar.gz"


def repack(folder: Path, name: str, version: str, edits: Edits | None = None) -> None:
    """Make an archive of another version from this checkout's, with other text in some files."""
    site_packages = f"./lib/python{PYTHON}/site-packages/"
    changes = {_VERSION_FILE: (__version__, version), **(edits or {})}
    with (
        tarfile.open(folder / archive(name, __version__)) as source,
        tarfile.open(folder / archive(name, version), "w:gz", compresslevel=1) as target,
    ):
        left = set(changes)
        for member in source:
            file = source.extractfile(member) if member.isfile() else None
            place = member.name.removeprefix(site_packages)
            if file is not None and place in changes:
                old, new = changes[place]
                text = file.read().decode()
                assert text.count(old) == 1, f"{place}: {old!r}"
                data = text.replace(old, new).encode()
                member.size = len(data)
                file = io.BytesIO(data)
                left.discard(place)
            target.addfile(member, file)
    assert not left, f"not in the archive: {left}"
