"""Why a machine is silent, on real machines with systemd whose agents report over the network and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import require
from tests.lab.machines import UNIT, USER, Lab, Machine, make_rootfs, missing_parts
from tests.processes import PROGRAMS, Site, running_site, wait_until

_PATIENCE = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    require(missing_parts())
    make_rootfs()
    with Lab(4) as running:
        yield running


@pytest.fixture(scope="module")
def site(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A collector in the hub, and every machine with an agent that reports to it."""
    folder = tmp_path_factory.mktemp("lab")
    with running_site(f"sqlite:///{folder}/fleet.db", folder) as site:
        site.upgrade()
        site.address, site.enroll_address = f"{lab.address}:8443", f"{lab.address}:8444"
        values = {
            "FLEETPULSE_DATABASE": site.database_url,
            "FLEETPULSE_IDENTITY_DIR": str(site.identity_dir),
            "FLEETPULSE_LISTEN": site.address,
            "FLEETPULSE_LOG_FORMAT": "json",
            "FLEETPULSE_SSH_USER": USER,
            "FLEETPULSE_SSH_KEYS": str(lab.client_key),
            "FLEETPULSE_SSH_KNOWN_HOSTS": str(lab.known_hosts),
            "FLEETPULSE_SSH_TIMEOUT": "12s",
            "FLEETPULSE_SSH_FALLBACK_INTERVAL": "3s",
        }
        site.start("collector", lab.command(PROGRAMS / "fleet-collector"), values).wait_for_log('"listening"')
        for machine in lab.machines:
            machine.enroll(site.address, site.token("--host", machine.name), site.ca_fingerprint)
            machine.start_agent()
        yield site


@pytest.fixture
def machine(lab: Lab, site: Site) -> Iterator[Machine]:
    """One that is well, and well again after the test."""
    one = lab["h1"]
    wait_until(
        lambda: is_fresh(site, *(each.name for each in lab.machines)), seconds=_PATIENCE, what="reports"
    )
    yield one
    if not one.is_running:
        one.start()
    if one.is_frozen:
        one.thaw()
    one.exec("systemctl", "enable", "--now", UNIT)


def is_fresh(site: Site, *names: str) -> bool:
    found = {entry["hostname"]: entry["presence"] for entry in site.json("hosts")["hosts"]}
    return all(found.get(name) == "fresh" for name in names)


def diagnosed(site: Site, name: str, kind: str) -> str:
    """The evidence, once the host is diagnosed so."""

    def found() -> Any:
        for entry in site.json("stale")["hosts"]:
            known = entry["diagnosis"] or {}
            if entry["hostname"] == name and known.get("kind") == kind:
                return known["evidence"]
        return None

    evidence = wait_until(found, seconds=_PATIENCE, what=f"{name}: {kind}; {site.json('stale')['hosts']}")
    assert isinstance(evidence, str)
    return evidence


def test_a_killed_agent_is_told_with_its_unit_and_its_last_words(site: Site, machine: Machine) -> None:
    machine.kill_agent()
    evidence = diagnosed(site, machine.name, "agent dead, host up")
    assert "unit failed" in evidence
    assert "signal" in evidence
    assert "fleet-agent" in evidence or "listening" in evidence or len(evidence.splitlines()) > 1
    shown = site.json("show", machine.name)
    assert shown["source"] == "ssh"
    assert {"cpu", "memory"} <= {check["check"] for check in shown["checks"]}
    assert "agent dead, host up" in site.cli("stale").stdout


def test_an_agent_that_hangs_is_told_from_one_that_has_ended(site: Site, machine: Machine) -> None:
    machine.kill_agent("STOP")
    assert "unit active" in diagnosed(site, machine.name, "agent dead, host up")
    machine.kill_agent("CONT")
    wait_until(lambda: is_fresh(site, machine.name), seconds=_PATIENCE, what="its reports")


def test_a_machine_that_is_frozen(site: Site, machine: Machine) -> None:
    machine.freeze()
    diagnosed(site, machine.name, "frozen")
    machine.thaw()
    wait_until(lambda: is_fresh(site, machine.name), seconds=_PATIENCE, what="its reports")


def test_a_machine_that_is_off(site: Site, machine: Machine) -> None:
    machine.power_off()
    assert "are heard" in diagnosed(site, machine.name, "host dead")


def test_a_machine_that_has_booted_without_its_agent(site: Site, machine: Machine) -> None:
    machine.exec("systemctl", "disable", UNIT)
    machine.reboot()
    assert "booted" in diagnosed(site, machine.name, "agent dead, host up")


def test_a_machine_that_boots_with_its_agent_is_a_reboot_and_no_diagnosis(
    site: Site, machine: Machine
) -> None:
    machine.reboot()

    def has_rebooted() -> bool:
        events = site.json("events", "--kind", "reboot")["events"]
        return any(event["hostname"] == machine.name for event in events)

    wait_until(has_rebooted, seconds=_PATIENCE, what="the event")
    wait_until(lambda: is_fresh(site, machine.name), seconds=_PATIENCE, what="its reports")


def test_machines_that_are_cut_off(site: Site, lab: Lab, machine: Machine) -> None:
    """All of the network: nobody is called dead. One of them: the others speak for the network."""
    machine.cut()
    assert "are heard" in diagnosed(site, machine.name, "host dead")
    others = [one for one in lab.machines if one is not machine]
    for one in others:
        one.cut()
    for one in lab.machines:
        diagnosed(site, one.name, "network unreachable")
    for one in lab.machines:
        one.heal()
    wait_until(lambda: is_fresh(site, *(one.name for one in lab.machines)), seconds=_PATIENCE, what="reports")
    assert not site.json("stale")["hosts"]
