"""The machines of the lab do what the tests of diagnoses take for granted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import require
from tests.lab.machines import (
    PORT,
    UNIT,
    USER,
    Lab,
    Machine,
    make_rootfs,
    missing_parts,
    remove_leftovers,
)
from tests.processes import PROGRAMS, ROOT, Site, clean_environ, wait_until


def traces() -> dict[str, object]:
    """What a lab changes on the machine it runs on."""
    cgroups = Path("/sys/fs/cgroup")
    return {
        # ip leaves a mount there for the namespaces to come.
        "mounts": {
            where
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if (where := line.split()[4]) != "/run/netns"
        },
        "network namespaces": set(Path("/run/netns").glob("*")),
        "control groups": {*cgroups.glob("fleetpulse-lab*/*"), *cgroups.glob("*/fleetpulse-lab*/*")},
        "inotify": Path("/proc/sys/fs/inotify/max_user_instances").read_text(),
        "processes": {path.parent.name for path in Path("/proc").glob("[0-9]*/comm") if is_nspawn(path)},
        "folders": set((ROOT / "var/lab/labs").glob("*")),
        "containers": set(Path("/run/systemd/nspawn").glob("*/*")),
    }


def expect_traces(before: dict[str, object]) -> None:
    """Processes that ended are still listed until their parent takes note."""
    with suppress(pytest.fail.Exception):
        wait_until(lambda: traces() == before, seconds=5)
    assert traces() == before


def is_nspawn(comm: Path) -> bool:
    try:
        return comm.read_text() == "systemd-nspawn\n"
    except OSError:
        return False


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require(missing_parts())
    make_rootfs()
    remove_leftovers()
    before = traces()
    with Lab(3) as lab:
        yield lab
    expect_traces(before)


@pytest.fixture
def machine(lab: Lab) -> Machine:
    return lab["h1"]


def banner(lab: Lab, machine: Machine, seconds: float = 10) -> bytes:
    """What a machine says first to who connects from the hub."""
    with lab.entered(), socket.create_connection((machine.address, PORT), timeout=seconds) as connection:
        return connection.recv(100)


def can_ping(lab: Lab, machine: Machine) -> bool:
    done = lab.run("busybox", "ping", "-c1", "-W1", machine.address, check=False)
    return done.returncode == 0


def test_machines_are_healthy_and_each_is_one_of_its_own(lab: Lab):
    for machine in lab.machines:
        assert machine.exec("systemctl", "is-system-running", "--wait").stdout == "running\n"
        assert machine.ssh("hostname").stdout == f"{machine.name}\n"
    for file in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        assert len({machine.exec("cat", file).stdout for machine in lab.machines}) == 3
    assert len({machine.host_key_line.split()[2] for machine in lab.machines}) == 3


def test_administrator_reads_the_journal_and_may_do_everything(machine: Machine):
    assert machine.ssh("id -un").stdout == f"{USER}\n"
    assert "Server listening" in machine.ssh("journalctl --unit ssh --no-pager").stdout
    assert machine.ssh("sudo id -u").stdout == "0\n"
    assert machine.ssh("id -u", user="root").stdout == "0\n"


def test_machines_reach_each_other_and_the_hub_and_nothing_else(lab: Lab):
    first, second, _ = lab.machines
    script = "import socket, sys; print(socket.create_connection((sys.argv[1], 22), 5).recv(4))"
    assert "SSH-" in first.exec("python3", "-c", script, second.address).stdout
    assert "unreachable" in first.exec("python3", "-c", script, "192.0.2.1", check=False).stderr


def test_systemd_enforces_limits(machine: Machine):
    script = "x = bytearray(64 << 20)"
    properties = ("-p", "MemoryMax=32M", "-p", "MemorySwapMax=0")
    run = ("systemd-run", "--quiet", "--wait", "--collect")
    machine.exec(*run, "python3", "-c", script)
    assert machine.exec(*run, *properties, "python3", "-c", script, check=False).returncode != 0


def test_frozen_machine_answers_ping_and_says_nothing(lab: Lab, machine: Machine):
    machine.freeze()
    assert can_ping(lab, machine)
    with pytest.raises(TimeoutError):
        banner(lab, machine, seconds=0.5)
    machine.thaw()
    assert banner(lab, machine)


def test_cut_machine_does_not_answer_until_healed(lab: Lab, machine: Machine):
    machine.cut()
    assert not can_ping(lab, machine)
    with pytest.raises(TimeoutError):
        banner(lab, machine, seconds=0.5)
    machine.heal()
    assert banner(lab, machine)


def test_reboot_keeps_the_disk_and_changes_the_boot_id(lab: Lab):
    machine = lab["h2"]
    boot_id = "/proc/sys/kernel/random/boot_id"
    before = [machine.exec("cat", file).stdout for file in (boot_id, "/etc/machine-id")]
    machine.exec("touch", "/var/lib/stays")
    machine.reboot()
    after = [machine.exec("cat", file).stdout for file in (boot_id, "/etc/machine-id")]
    assert before[0] != after[0]
    assert before[1] == after[1]
    machine.exec("test", "-e", "/var/lib/stays")
    assert machine.ssh("hostname").stdout == "h2\n"


def test_power_failure(lab: Lab):
    machine = lab["h3"]
    machine.freeze()  # even so
    machine.power_off()
    assert not machine.is_running
    with pytest.raises(OSError, match="No route to host"):
        banner(lab, machine)
    machine.start()
    assert machine.ssh("hostname").stdout == "h3\n"


def test_machine_that_is_shut_down_stays_off(lab: Lab):
    machine = lab["h3"]
    machine.exec("systemctl", "--no-block", "poweroff")
    wait_until(lambda: not machine.is_running)
    machine.start()


def test_killed_agent_is_a_failed_unit(machine: Machine):
    machine.start_agent(tls="off")
    assert machine.unit_state(UNIT) == "active"
    machine.kill_agent()
    wait_until(lambda: machine.unit_state(UNIT) == "failed")
    shown = machine.ssh(f"systemctl show --property=Result,ExecMainStatus {UNIT}").stdout
    assert set(shown.split()) == {"Result=signal", "ExecMainStatus=9"}
    machine.exec("systemctl", "disable", UNIT)
    machine.exec("systemctl", "reset-failed", UNIT)


def test_agent_enrols_and_reports_to_a_collector_in_the_hub(lab: Lab, sqlite_site: Site):
    site, machine = sqlite_site, lab["h2"]
    site.upgrade()
    site.address, site.enroll_address = f"{lab.address}:8443", f"{lab.address}:8444"
    collector = site.start(
        "collector",
        lab.command(PROGRAMS / "fleet-collector"),
        {
            "FLEETPULSE_DATABASE": site.database_url,
            "FLEETPULSE_IDENTITY_DIR": str(site.identity_dir),
            "FLEETPULSE_LISTEN": site.address,
            "FLEETPULSE_LOG_FORMAT": "json",
        },
    )
    collector.wait_for_log('"listening"')
    machine.enroll(site.address, site.token("--host", machine.name), site.ca_fingerprint)
    machine.start_agent()

    def presence() -> str:
        return next(
            (host["presence"] for host in site.json("hosts")["hosts"] if host["hostname"] == "h2"), ""
        )

    wait_until(lambda: presence() == "fresh", what="the agent's first report")
    machine.reboot()
    wait_until(lambda: machine.unit_state(UNIT) == "active", what="the agent runs after the boot")
    wait_until(lambda: presence() == "fresh", what="the agent is back")
    machine.exec("systemctl", "disable", "--now", UNIT)


def test_lab_of_a_killed_process_is_removed_by_the_next_one(lab: Lab):
    before = traces()
    script = """\
        from tests.lab.machines import Lab

        with Lab(2) as lab:
            lab["h2"].freeze()
            print("up", flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(
        command, cwd=ROOT, env=clean_environ({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.kill(process.pid, signal.SIGKILL)
    assert traces() != before
    remove_leftovers()
    expect_traces(before)
