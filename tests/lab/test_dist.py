"""The wheels that `make dist` packs are all that a machine needs which has pip and reaches no registry."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.lab.machines import Lab, Machine, make_rootfs, missing_parts
from tests.processes import ROOT, wait_until

INSTALL = """\
set -eu
folder=/opt/fleetpulse/all
mkdir -p /tmp/unpacked && tar -C /tmp/unpacked --strip-components=1 -xzf -
/usr/bin/python3 -m venv "$folder"
"$folder/bin/pip" install -q --no-index --find-links /tmp/unpacked --require-hashes --no-deps -r /tmp/unpacked/agent.txt \
    -r /tmp/unpacked/collector.txt
"$folder/bin/pip" install -q --no-index --no-deps /tmp/unpacked/fleetpulse-*.whl
for program in agent collector; do mkdir /opt/fleetpulse/$program && ln -s "$folder" /opt/fleetpulse/$program/current; done
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # What Debian 12 has.
    environ = {**os.environ, "DIST": str(folder), "PYTHONS": "3.11", "ARCHS": os.uname().machine}
    subprocess.run(["make", "dist"], cwd=ROOT, env=environ, check=True, capture_output=True, timeout=600)
    [made] = folder.glob("fleetpulse-wheels-*-cp311-*.tar.gz")
    return made


@pytest.fixture(scope="module")
def machine(archive: Path) -> Iterator[Machine]:
    """One on which the archive was installed as the units expect it."""
    require(missing_parts())
    make_rootfs()
    with Lab(1) as lab:
        one = lab["h1"]
        one.exec("sh", "-c", INSTALL, input=archive.read_bytes(), text=False)
        for user, unit in (("fleetpulse-agent", "fleetpulse-agent"), ("fleetpulse", "fleetpulse-collector")):
            one.exec("useradd", "--system", "--shell", "/usr/sbin/nologin", user, check=False)
            text = (ROOT / "deploy" / "systemd" / f"{unit}.service").read_text()
            one.exec("sh", "-c", f"cat >/etc/systemd/system/{unit}.service", input=text)
        settings = 'tls = "off"\\n[silence]\\nfleet_minimum = 2\\n'
        one.exec(
            "sh", "-c", f"mkdir -p /etc/fleetpulse && printf '{settings}' >/etc/fleetpulse/collector.toml"
        )
        one.exec("sh", "-c", 'printf \'tls = "off"\\ninterval = "1s"\\n\' >/etc/fleetpulse/agent.toml')
        one.exec("systemctl", "daemon-reload")
        yield one


def test_the_units_as_shipped_run_what_was_installed(machine: Machine) -> None:
    """A collector and an agent on one machine, each as its own user, from the archive alone."""
    cli = "/opt/fleetpulse/collector/current/bin/collector-cli"
    as_service = ("setpriv", "--reuid=fleetpulse", "--regid=fleetpulse", "--clear-groups")
    machine.exec("install", "-d", "-o", "fleetpulse", "-g", "fleetpulse", "/var/lib/fleetpulse")
    machine.exec(*as_service, cli, "db", "upgrade")
    machine.exec("systemctl", "start", "fleetpulse-collector", "fleetpulse-agent")
    wait_until(
        lambda: "1 fresh" in machine.exec(*as_service, cli, "status", check=False).stdout,
        seconds=60,
        what="the agent's report",
    )
    status = machine.exec("systemctl", "show", "--value", "--property=StatusText", "fleetpulse-agent")
    assert "reports to" in status.stdout
    machine.exec("systemctl", "stop", "fleetpulse-agent", "fleetpulse-collector")
    log = machine.exec("journalctl", "-u", "fleetpulse-*", "-o", "cat", "--no-pager").stdout
    assert "Traceback" not in log
