"""collector-cli as admins run it: the installed script, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("collector-cli")


def environment(url: str | None, **extra: str) -> dict[str, str]:
    """This process's environment without its own fleetpulse settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE")}
    chosen = {"FLEETPULSE_DATABASE": url} if url is not None else {}
    return {**inherited, **chosen, "TZ": "UTC", **extra}


def run_cli(
    url: str | None, *arguments: str, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end; `extra` is added to the environment."""
    return subprocess.run(
        [SCRIPT, *arguments],
        cwd=cwd,
        env=environment(url, **extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
