"""Why a host is silent: each row of the table in docs/ssh.md, with real sshd in a network of its own.

The hosts' agents all report through a socket, so that only their death makes them silent; then each is found in
another condition. The machines of tests/lab have agents that report over the network, and systemd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.processes import PROGRAMS, Program, Site, running_site, wait_until
from tests.ssh_net import USER, SshNet, make_key, missing_parts

# How each host is found. All but the first are asked in vain.
HOSTS = (
    "alive",
    "busybox",
    "bound",
    "dead",
    "vanished",
    "partitioned",
    "refused",
    "changed",
    "frozen",
    "closed",
    "untrusted",
    "forbidden",
    "garbled",
    "unreachable",
)
# Of an agent that was killed; the numbers of the simulated hosts.
NAMES = {host: f"sim-{number:03}" for number, host in enumerate(HOSTS, 1)}


def start_collector(site: Site, net: SshNet, **settings: str) -> Program:
    """A collector in the network's hub."""
    site.upgrade()
    values = {
        **site._common_settings,
        "FLEETPULSE_LOG_FORMAT": "json",
        "FLEETPULSE_SSH_KEYS": str(net.client_key),
        "FLEETPULSE_SSH_USER": USER,
        "FLEETPULSE_SSH_TIMEOUT": "12s",
        "FLEETPULSE_SSH_FALLBACK_INTERVAL": "2s",
        **{f"FLEETPULSE_{name.upper()}": value for name, value in settings.items()},
    }
    program = site.start("collector", net.command(PROGRAMS / "fleet-collector"), values)
    program.wait_for_log('"listening"')
    return program


@pytest.fixture(scope="module")
def net() -> Iterator[SshNet]:
    require(missing_parts())
    with SshNet() as running:
        yield running


@pytest.fixture(scope="module")
def site(net: SshNet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Every host has been silent for a while."""
    folder = tmp_path_factory.mktemp("diagnosis")
    with running_site(f"sqlite:///{folder}/fleet.db", folder) as site:
        site.address = f"unix:{folder}/s"
        hosts = {name: net.add(name, **_options(site, net, name)) for name in HOSTS if name != "unreachable"}
        start_collector(site, net)
        fleet = site.fleet(len(HOSTS), "--interval", "0.5", "--ttl", "6s")
        wait_until(lambda: site.json("status")["presence"]["fresh"] == len(HOSTS), what="reports")
        lines = folder / "known_hosts"
        for name, host in hosts.items():
            site.cli("ssh", "add", NAMES[name], "--address", host.address, check=True)
            if name != "untrusted":
                with lines.open("a") as file:
                    file.write(host.host_key_line + "\n")
        site.cli("ssh", "add", NAMES["unreachable"], "--address", "203.0.113.9", check=True)
        site.cli("ssh", "add", NAMES["forbidden"], "--no-fallback", check=True)
        site.cli("ssh", "trust", "--known-hosts", str(lines), check=True)
        hosts["dead"].kill(remembered=True)
        hosts["vanished"].kill()
        hosts["partitioned"].drop()
        hosts["refused"].forget_key()
        hosts["changed"].new_host_key()
        hosts["frozen"].freeze()
        hosts["closed"].refuse()
        fleet.kill()
        yield site
        hosts["frozen"].thaw()  # or its end would take long


def _options(site: Site, net: SshNet, name: str) -> dict[str, Any]:
    if name == "busybox":
        return {"shell": "busybox"}
    if name == "bound":
        script = net.folder / "fleetpulse-probe"
        script.write_text(site.cli("ssh", "probe", check=True).stdout)
        script.chmod(0o755)
        return {"forced_command": str(script), "shell": "/bin/dash"}
    if name == "garbled":
        return {"forced_command": "echo This account is for backups only"}
    return {}


def diagnosis(site: Site, name: str) -> Any:
    found = {entry["hostname"]: entry for entry in site.json("stale")["hosts"]}
    return found[NAMES[name]]["diagnosis"] if NAMES[name] in found else None


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("alive", "agent dead, host up", "nothing could be read of the unit"),
        ("busybox", "agent dead, host up", ""),
        ("bound", "agent dead, host up", ""),
        ("dead", "host dead", "of 10.91.0.0/24 are heard"),
        ("vanished", "host dead", "No route to host"),
        ("partitioned", "host dead", "of 10.91.0.0/24 are heard"),
        ("refused", "refused our key", "Permission denied"),
        ("changed", "host key changed", "collector-cli ssh trust --replace"),
        ("frozen", "frozen", "TCP answers and SSH says nothing"),
        ("closed", "host up, ssh closed", "Connection refused"),
        ("untrusted", "not probed", "collector-cli ssh trust"),
        ("forbidden", "not probed", "fallback"),
        ("garbled", "host up, probe failed", "This account is for backups only"),
        ("unreachable", "network unreachable", "Network is unreachable"),
    ],
)
def test_each_condition_is_told_from_the_others(site: Site, name: str, kind: str, said: str) -> None:
    def found() -> Any:
        known = diagnosis(site, name)
        return known if known and known["kind"] == kind and said in known["evidence"] else None

    wait_until(found, seconds=90, what=f"{name}: {kind} ({said}); it is {diagnosis(site, name)}")


def test_health_flows_from_hosts_that_are_up(site: Site) -> None:
    """From every kind of shell, and from a key that may do nothing but that."""
    for name in ("alive", "busybox", "bound"):
        wait_until(lambda name=name: (diagnosis(site, name) or {}).get("health_at"), what=f"health of {name}")
        shown = site.json("show", NAMES[name])
        assert shown["source"] == "ssh"
        assert shown["presence"] == "stale"
        values = {one["measurement"]: one["value"] for one in shown["values"]}
        assert values["system.memory.limit"] > 2**20
        assert values["system.uptime"] > 1


def test_a_whole_network_that_is_cut_off_is_told_from_dead_hosts(tmp_path: Path) -> None:
    """Every host of it is silent, and nobody answers. When one is heard again, the other was dead."""
    require(missing_parts())
    with ExitStack() as stack:
        net = stack.enter_context(SshNet())
        site = stack.enter_context(running_site(f"sqlite:///{tmp_path}/fleet.db", tmp_path))
        site.address = f"unix:{tmp_path}/s"
        one, two = net.add("one"), net.add("two")
        start_collector(site, net, ssh_interval="1s", ssh_timeout="1500ms")
        for host in (one, two):
            site.cli("ssh", "add", host.name, "--address", host.address, check=True)
        lines = tmp_path / "known_hosts"
        lines.write_text(f"{one.host_key_line}\n{two.host_key_line}\n")
        site.cli("ssh", "trust", "--known-hosts", str(lines), check=True)
        wait_until(lambda: site.json("status")["presence"]["fresh"] == 2, what="reports")

        def kinds() -> dict[str, str]:
            stale = site.json("stale")["hosts"]
            return {host["hostname"]: (host["diagnosis"] or {}).get("kind", "") for host in stale}

        for host in (one, two):
            host.drop()
        wait_until(
            lambda: set(kinds().values()) == {"network unreachable"} and len(kinds()) == 2,
            what=f"the network as the reason; it is {kinds()}",
        )
        two.heal()
        wait_until(lambda: kinds() == {"one": "host dead"}, what=f"the host; it is {kinds()}")
        one.heal()
        wait_until(lambda: not kinds(), what="an end")


def test_hosts_behind_a_jump_host(tmp_path: Path) -> None:
    """They are polled through it, and it is the jump host that is told when it is away."""
    require(missing_parts())
    with ExitStack() as stack:
        net = stack.enter_context(SshNet())
        site = stack.enter_context(running_site(f"sqlite:///{tmp_path}/fleet.db", tmp_path))
        site.address = f"unix:{tmp_path}/s"
        gate = net.add("gate")
        inner = [net.add(f"inner-{number}", behind=gate) for number in range(3)]
        start_collector(site, net, ssh_interval="1s", ssh_timeout="3s")
        for host in inner:
            site.cli("ssh", "add", host.name, "--address", host.address, "--jump", gate.address, check=True)
        lines = tmp_path / "known_hosts"
        lines.write_text("".join(f"{host.host_key_line}\n" for host in (gate, *inner)))
        site.cli("ssh", "trust", "--known-hosts", str(lines), check=True)
        wait_until(lambda: site.json("status")["presence"]["fresh"] == 3, what="reports")
        assert gate.logins() == 1, "one connection for all"
        gate.drop()

        def evidence() -> list[str]:
            stale = site.json("stale")["hosts"]
            return [(host["diagnosis"] or {}).get("evidence", "") for host in stale]

        wait_until(
            lambda: (
                len(evidence()) == 3
                and all(f"jump host {gate.address}: host dead" in said for said in evidence())
            ),
            what=f"the jump host as the reason; it is {evidence()}",
        )
        gate.heal()
        wait_until(lambda: site.json("status")["presence"]["fresh"] == 3, what="reports again")


def test_hosts_that_a_ca_vouches_for(tmp_path: Path) -> None:
    """Their own keys need not be known. A certificate of another CA, or for another name, is not enough."""
    require(missing_parts())
    with ExitStack() as stack:
        net = stack.enter_context(SshNet())
        site = stack.enter_context(running_site(f"sqlite:///{tmp_path}/fleet.db", tmp_path))
        site.address = f"unix:{tmp_path}/s"
        ca, other = make_key(tmp_path / "ca"), make_key(tmp_path / "other")
        good = net.add("good", host_ca=ca)
        bad = net.add("bad", host_ca=other)
        start_collector(site, net, ssh_interval="1s", ssh_timeout="3s")
        for host in (good, bad):
            site.cli("ssh", "add", host.name, "--address", host.address, check=True)
        site.cli("ssh", "trust", "--ca", f"{ca}.pub", "--for", "*", check=True)

        def presences() -> dict[str, str]:
            return {host["hostname"]: host["presence"] for host in site.json("hosts")["hosts"]}

        wait_until(
            lambda: presences() == {"good": "fresh", "bad": "never_seen"}, what=f"the good one; {presences()}"
        )
        [stale] = site.json("stale")["hosts"]
        wanted = "ssh trust --ca FILE --for bad"
        wait_until(
            lambda: wanted in str(site.json("stale")["hosts"][0]["diagnosis"]),
            what=f"advice; {stale['diagnosis']}",
        )
        good.new_host_key()  # and with it another certificate of the same CA
        seen = site.json("show", "good")["measured_at"]
        wait_until(lambda: site.json("show", "good")["measured_at"] > seen, what="more of its reports")
        assert good.logins() > 0
        assert bad.logins() == 0
