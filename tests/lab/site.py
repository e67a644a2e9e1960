"""A lab that Ansible has to do with, for a test of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import require
from tests.lab import releases
from tests.lab.machines import Lab, make_rootfs, missing_parts
from tests.lab.rollout import Site, make_old, make_strict
from tests.processes import ROOT

SUMMARY = ROOT / "var" / "lab" / "summary"
"""What the last run has shown: steps, times, figures."""


@contextmanager
def managed_lab(machines: int, folder: Path, database: str) -> Iterator[Site]:
    """A collector and `machines` more, of which `database` (h1 is the collector) has MariaDB."""
    require(missing_parts() or releases.missing_python())
    make_rootfs()
    releases.build(folder / "dist")
    with Lab(machines + 1, is_bare=True) as lab:
        site = Site(lab, folder, database)
        make_old(site.old)
        make_strict(site.agents[0])
        try:
            yield site
        finally:
            site.close()
            SUMMARY.write_text(f"{machines} machines and a collector\n{site.summary}\n")
