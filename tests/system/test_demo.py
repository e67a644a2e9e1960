"""The demo: the same enrolment as everywhere else, without root or a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from tests.processes import ROOT, clean_environ


def test_the_demo_enrols_this_machine_and_its_simulated_hosts_over_tls() -> None:
    done = subprocess.run(
        [sys.executable, "tools/demo.py", "2"],
        cwd=ROOT,
        env=clean_environ({}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo: enrolled as " in done.stdout
    assert re.search(r"\b2[01] fresh, ", done.stdout)
    found = re.search(r"logs and database are in (\S+)", done.stdout)
    assert found is not None
    folder = ROOT / found[1]
    listening = next(
        line for line in (folder / "collector.log").read_text().splitlines() if "listening" in line
    )
    assert re.search(r"tls\W+on\b", re.sub(r"\x1b\[[0-9;]*m", "", listening))
    port = int(json.loads((folder / "agent" / "enrolment.json").read_text())["collector"].rpartition(":")[2])
    assert f"127.0.0.1:{port + 1}" in done.stdout
    assert "tls" not in (folder / "agent.toml").read_text()
    # Each of the others has a key of its own, too.
    keys = {path.read_bytes().partition(b"CERTIFICATE")[0] for path in folder.glob("simulator/*/host.pem")}
    assert len(keys) == 20
