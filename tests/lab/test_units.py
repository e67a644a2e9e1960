"""The units that are shipped, under a real systemd: verified, sandboxed, watched, and able to do their work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.lab.machines import Lab, Machine, make_rootfs, missing_parts
from tests.processes import PROGRAMS, ROOT, wait_until

UNITS = ROOT / "deploy" / "systemd"
AGENT, COLLECTOR = "fleetpulse-agent.service", "fleetpulse-collector.service"
EXPOSURE = {AGENT: 25, COLLECTOR: 20}  # tenths, at most


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One on which both units are installed; the programs are those of this checkout."""
    require(missing_parts())
    make_rootfs()
    with Lab(1) as lab:
        one = lab["h1"]
        for user in ("fleetpulse-agent", "fleetpulse"):
            one.exec("useradd", "--system", "--shell", "/usr/sbin/nologin", user, check=False)
        one.exec("chmod", "755", "/root")  # where the interpreter may be
        for name in (AGENT, COLLECTOR):
            install(one, name)
        # The interpreter is in a home directory here.
        drop_in(
            one,
            COLLECTOR,
            "ProtectHome=read-only\nEnvironment=FLEETPULSE_TLS=off\nExecStartPre="
            f"{PROGRAMS}/collector-cli db upgrade",
        )
        drop_in(
            one, AGENT, "Environment=FLEETPULSE_AGENT_TLS=off FLEETPULSE_AGENT_INTERVAL=1s\nWatchdogSec=4"
        )
        one.exec("systemctl", "daemon-reload")
        yield one


def install(machine: Machine, name: str, text: str = "") -> None:
    text = text or (UNITS / name).read_text()
    text = re.sub(r"/opt/fleetpulse/\w+/current/bin", str(PROGRAMS), text)
    machine.exec("sh", "-c", f"cat >/etc/systemd/system/{name}", input=text)


def drop_in(machine: Machine, name: str, service: str) -> None:
    folder = f"/etc/systemd/system/{name}.d"
    machine.exec("sh", "-c", f"mkdir -p {folder} && cat >{folder}/lab.conf", input=f"[Service]\n{service}\n")


def shown(machine: Machine, name: str, value: str) -> str:
    return str(machine.exec("systemctl", "show", "--value", f"--property={value}", name).stdout).strip()


@pytest.mark.parametrize("name", [AGENT, COLLECTOR])
def test_systemd_finds_nothing_wrong(machine: Machine, name: str) -> None:
    done = machine.exec("systemd-analyze", "verify", f"/etc/systemd/system/{name}", check=False)
    assert (done.stdout + done.stderr).strip() == ""


@pytest.mark.parametrize("name", [AGENT, COLLECTOR])
def test_exposure_is_low(machine: Machine, name: str, tmp_path: Path) -> None:
    install(machine, f"shipped-{name}", (UNITS / name).read_text())
    done = machine.exec(
        *("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE[name]}"),
        f"/etc/systemd/system/shipped-{name}",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:]


@pytest.mark.parametrize("name", [AGENT, COLLECTOR])
def test_it_is_up_when_it_says_so_and_comes_back_when_it_is_killed(machine: Machine, name: str) -> None:
    machine.exec("systemctl", "start", name)  # returns when it has said that it is ready
    assert shown(machine, name, "ActiveState") == "active"
    assert shown(machine, name, "StatusText")
    pid = shown(machine, name, "MainPID")
    machine.exec("systemctl", "kill", "--signal=KILL", name)
    wait_until(
        lambda: (
            shown(machine, name, "ActiveState") == "active"
            and shown(machine, name, "MainPID") not in (pid, "0")
        ),
        seconds=40,
        what=f"{name} again",
    )
    assert shown(machine, name, "NRestarts") == "1"


def test_an_agent_that_hangs_is_started_again(machine: Machine) -> None:
    done = machine.exec("systemctl", "restart", AGENT, check=False)
    assert done.returncode == 0, machine.exec("journalctl", "-u", AGENT, "-n", "30", "--no-pager").stdout
    pid = shown(machine, AGENT, "MainPID")
    machine.exec("systemctl", "kill", "--signal=STOP", AGENT)
    wait_until(lambda: shown(machine, AGENT, "MainPID") not in (pid, "0"), seconds=60, what="another process")


def test_the_sandbox_takes_no_check_away(machine: Machine) -> None:
    """What the agent measures in its unit is what it measures as root without."""
    program = PROGRAMS / "fleet-agent"
    text = (
        (UNITS / AGENT)
        .read_text()
        .replace("Type=notify", "Type=oneshot")
        .replace("Restart=always", "Restart=no")
    )
    text = text.replace("fleet-agent run", "fleet-agent once --json").replace(
        "WatchdogSec=60", "StandardOutput=file:/run/once.json"
    )
    install(machine, "once.service", text)
    machine.exec("systemctl", "daemon-reload")
    machine.exec("systemctl", "start", "once.service")
    inside = json.loads(machine.exec("cat", "/run/once.json").stdout)
    outside = json.loads(machine.exec(str(program), "once", "--json").stdout)

    def checks(said: object) -> set[tuple[str, str]]:
        assert isinstance(said, dict)
        return {(check["name"], check["instance"]) for check in said["checks"]}

    assert checks(inside) == checks(outside)
    assert not [check for check in inside["checks"] if check.get("state") not in (None, "OK")]


def test_the_collector_reloads_its_rules(machine: Machine) -> None:
    machine.exec("systemctl", "restart", COLLECTOR)
    machine.exec("systemctl", "reload", COLLECTOR)
    wait_until(
        lambda: (
            "rules loaded" in machine.exec("journalctl", "-u", COLLECTOR, "-o", "cat", "--no-pager").stdout
        ),
        what="the log",
    )
    assert shown(machine, COLLECTOR, "ActiveState") == "active"
