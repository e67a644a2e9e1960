"""The collector asks hosts over SSH: real collectors, and servers that answer, hang, change and vanish."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mariadb_server import MariadbServer
from tests.processes import Program, Site, wait_until
from tests.ssh_server import SshServer, real_output
from tests.ssh_site import add_polled, trust


class Machine:
    """What the hosts behind a server say."""

    def __init__(self) -> None:
        self._output = real_output()
        self.boot_id = ""
        self.free_kib = 0

    def __call__(self) -> bytes:
        output = self._output
        if self.boot_id:
            output = re.sub(
                rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", self.boot_id.encode(), output, count=1
            )
        if self.free_kib:
            output = re.sub(rb"MemAvailable: +\d+", b"MemAvailable: %d" % self.free_kib, output)
        return output


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.fixture
def server(tmp_path: Path, machine: Machine) -> Iterator[SshServer]:
    folder = tmp_path / "ssh"
    folder.mkdir()
    machine.boot_id, machine.free_kib = "", 0
    addresses = [f"127.0.0.{number}" for number in range(1, 41)]
    with SshServer(folder, machine, addresses=addresses) as running:
        yield running


def start(site: Site, server: SshServer, **settings: str) -> Program:
    return site.collector(**{"ssh_keys": str(server.key_file), "ssh_fallback_interval": "1s", **settings})


def host(site: Site, name: str) -> Any:
    return next((entry for entry in site.json("hosts")["hosts"] if entry["hostname"] == name), None)


def is_fresh(site: Site, *names: str) -> bool:
    found = {entry["hostname"]: entry["presence"] for entry in site.json("hosts")["hosts"]}
    return all(found.get(name) == "fresh" for name in names)


def kinds(site: Site, name: str) -> list[str]:
    return [
        event["kind"]
        for event in site.json("events", "--limit", "10000")["events"]
        if event["hostname"] == name
    ]


def check(site: Site, name: str, wanted: str) -> Any:
    return next((one for one in site.json("show", name)["checks"] if one["check"] == wanted), None)


def diagnosis(site: Site, name: str) -> Any:
    found = {entry["hostname"]: entry for entry in site.json("stale")["hosts"]}
    return found[name]["diagnosis"] if name in found else None


def diagnosed(site: Site, name: str, kind: str, seconds: float = 60) -> Any:
    """The diagnosis, once it is of that kind."""

    def found() -> Any:
        known = diagnosis(site, name)
        return known if known and known["kind"] == kind else None

    return wait_until(found, seconds=seconds, what=f"{name}: {kind}; it is {diagnosis(site, name)}")


def test_hosts_without_an_agent_report_by_the_same_door(
    site: Site, server: SshServer, machine: Machine
) -> None:
    collector = start(site, server)
    # Seldom, for a host gets no longer for an answer than until its next turn.
    add_polled(site, server, {"web-1": "127.0.0.1", "web-2": "127.0.0.2"}, interval=3_000, timeout=3_000)
    wait_until(lambda: is_fresh(site, "web-1", "web-2"), what="reports")
    shown = site.json("show", "web-1")
    assert shown["agent_version"] == "ssh"
    assert shown["facts"]["os.type"] == "linux"
    assert {"cpu", "filesystem", "memory", "ssh", "uptime"} <= {one["check"] for one in shown["checks"]}

    machine.free_kib = 1  # judged by the rules that judge agents
    wait_until(lambda: check(site, "web-1", "memory")["state"] == "CRITICAL", what="the rules' word")
    machine.free_kib = 0
    wait_until(lambda: check(site, "web-1", "memory")["state"] == "OK", what="the end of that")

    machine.boot_id = "11111111-2222-3333-4444-555555555555"
    wait_until(lambda: "reboot" in kinds(site, "web-1"), what="a reboot")
    assert set(kinds(site, "web-1")) == {"state", "reboot"}
    assert server.connections == 2, "connections are kept"
    assert max(server.most_at_once.values()) == 1
    assert collector.stop() == 0
    assert "Traceback" not in collector.log


def test_a_host_that_cannot_be_asked_is_unknown_then_silent_then_back(
    sqlite_site: Site, server: SshServer
) -> None:
    site = sqlite_site
    start(site, server, ssh_fallback_interval="2s")
    add_polled(site, server, {"web-1": "127.0.0.1", "web-2": "127.0.0.2"}, interval=2_000)
    wait_until(lambda: is_fresh(site, "web-1", "web-2"), what="reports")
    server.mode = "refuse"
    server.disconnect()
    wait_until(lambda: check(site, "web-1", "ssh")["state"] == "UNKNOWN", what="the check's word")
    wait_until(lambda: "refused our key" in check(site, "web-1", "ssh")["message"], what="the reason")
    found = diagnosed(site, "web-1", "refused our key")
    assert "Permission denied" in found["evidence"]
    server.mode = "ok"
    wait_until(lambda: is_fresh(site, "web-1", "web-2"), what="reports again")
    wait_until(lambda: check(site, "web-1", "ssh")["state"] == "OK", what="an end")
    assert diagnosis(site, "web-1") is None
    assert {"silent", "back"} <= set(kinds(site, "web-1"))
    assert "check-removed" not in kinds(site, "web-1")


def test_another_host_key_is_an_event_and_unknown_and_never_accepted(
    sqlite_site: Site, server: SshServer, tmp_path: Path, machine: Machine
) -> None:
    site = sqlite_site
    start(site, server)
    other = tmp_path / "other"
    other.mkdir()
    with SshServer(other, machine) as impostor:
        impostor.client_key = server.client_key
        add_polled(site, server, {"web-1": "127.0.0.1"})
        wait_until(lambda: is_fresh(site, "web-1"), what="a report")
        add_settings(site, "web-1", server, port=impostor.port)
        wait_until(lambda: check(site, "web-1", "ssh")["state"] == "UNKNOWN", what="the check's word")
        found = diagnosed(site, "web-1", "host key changed")
        for key in (server.host_key, impostor.host_key):
            assert key.get_fingerprint() in found["evidence"]
        assert kinds(site, "web-1").count("host-key-changed") == 1
        assert not impostor.sessions
        assert not impostor.users
        trust(site, "web-1", impostor)  # an admin says that it is right
        wait_until(lambda: is_fresh(site, "web-1"), what="a report")


def add_settings(site: Site, name: str, server: SshServer, **changes: object) -> None:
    from collector.core.ssh_settings import SshSettings
    from collector.store import ssh_hosts
    from collector.store.reading import find_named

    store = site.open_store()
    with store.transaction() as tx:
        [line] = find_named(tx, name)
        own = {
            "address": "127.0.0.1",
            "port": server.port,
            "user": "monitor",
            "interval": 1_000,
            "timeout": 3_000,
        }
        ssh_hosts.save_ssh_host(tx, line.host, SshSettings(**{**own, **changes}), polled=True)  # type: ignore[arg-type]
        ssh_hosts.note_change(tx)
    store.close()


def test_hosts_that_hang_do_not_keep_the_others_waiting(
    sqlite_site: Site, server: SshServer, tmp_path: Path
) -> None:
    """Half of the hosts accept connections and say nothing for 5 s; the others are asked each second."""
    site = sqlite_site
    folder = tmp_path / "hung"
    folder.mkdir()
    addresses = [f"127.0.1.{number}" for number in range(1, 31)]
    with SshServer(folder, b"", "silent", addresses) as hung:
        collector = start(site, server, ssh_concurrency="40")
        add_polled(site, server, {f"web-{number}": f"127.0.0.{number}" for number in range(1, 31)})
        hanging = {f"hung-{number}": address for number, address in enumerate(addresses)}
        add_polled(site, hung, hanging, trust=False, interval=5_000, timeout=5_000)
        wait_until(lambda: len(server.sessions) == 30, what="first reports")
        wait_until(lambda: hung.connections > 30, what="hosts that hang again and again")

        def share() -> float:
            """Of the polls that were due meanwhile, how many each of the others got at least."""
            before, goal, began = dict(server.sessions), hung.connections + 15, time.monotonic()
            wait_until(lambda: hung.connections > goal, what="more of them")
            least = min(server.sessions[address] - before[address] for address in before)
            return least / (time.monotonic() - began)

        # A machine that is busy with other things asks less often, but not all the time.
        shares = [share()]
        while shares[-1] < 0.5 and len(shares) < 5:
            shares.append(share())
        assert shares[-1] >= 0.5, shares
        assert max(server.most_at_once.values()) == 1
        assert collector.stop() == 0


def test_a_collector_killed_in_mid_round_asks_nobody_twice_at_once_and_forgets_none(
    mariadb_site: Site, server: SshServer
) -> None:
    site = mariadb_site
    names = {f"web-{number}": f"127.0.0.{number}" for number in range(1, 31)}
    collector = start(site, server)
    add_polled(site, server, names, interval=2_000)
    wait_until(lambda: len(server.sessions) == 30, what="first polls")
    collector.kill()
    collector = start(site, server, upgrade="")
    before = dict(server.sessions)
    wait_until(
        lambda: all(server.sessions[address] > before[address] + 1 for address in names.values()),
        seconds=60,
        what="every host polled again",
    )
    wait_until(lambda: is_fresh(site, *names), what="reports")
    assert max(server.most_at_once.values()) == 1
    assert collector.stop() == 0


def test_collectors_share_the_hosts_and_take_over_from_one_that_dies(
    mariadb_site: Site, server: SshServer
) -> None:
    site = mariadb_site
    names = {f"web-{number}": f"127.0.0.{number}" for number in range(1, 31)}
    one = start(site, server)
    add_polled(site, server, names, interval=2_000)
    wait_until(lambda: is_fresh(site, *names), what="reports")
    address = site.address
    site.address = ""
    two = start(site, server, name="second")
    site.address = address

    def holders() -> set[str]:
        return {entry["collector"] for entry in site.json("ssh", "list")["hosts"]}

    wait_until(lambda: len(holders()) == 2, what="a share for the second")
    assert max(server.most_at_once.values()) == 1
    two.signal(signal.SIGKILL)
    before = dict(server.sessions)
    wait_until(
        lambda: all(server.sessions[address] > before[address] for address in names.values()),
        seconds=60,
        what="every host polled by the first",
    )
    wait_until(lambda: len(holders()) == 1, what="all for the first")
    wait_until(lambda: is_fresh(site, *names), what="reports")
    assert max(server.most_at_once.values()) == 1
    assert one.is_running


def test_a_silent_agents_host_is_asked_why_and_its_health_flows_until_the_agent_is_back(
    site: Site, server: SshServer, machine: Machine
) -> None:
    start(site, server, ssh_port=str(server.port), ssh_user="monitor")
    trust(site, "one", server)
    agent = site.agent("one", ttl="6s")
    wait_until(lambda: is_fresh(site, "one"), what="a report")
    checks = {(one["check"], one["instance"]) for one in site.json("show", "one")["checks"]}
    agent.kill()
    found = diagnosed(site, "one", "agent dead, host up")
    assert found["health_at"]
    shown = site.json("show", "one")
    assert shown["source"] == "ssh"
    assert {(one["check"], one["instance"]) for one in shown["checks"]} == checks

    machine.free_kib = 1  # its health still flows
    wait_until(lambda: check(site, "one", "memory")["state"] == "CRITICAL", what="the rules' word")
    assert host(site, "one")["presence"] == "stale"
    machine.free_kib = 0

    site.agent("one", ttl="6s")
    wait_until(lambda: is_fresh(site, "one"), what="the agent's own word")
    assert site.json("show", "one")["source"] == "agent"
    seen = server.sessions.total()
    wait_until(lambda: not server.at_once.total(), what="the last probe")
    events = kinds(site, "one")
    assert events.count("silent") == events.count("back") == events.count("diagnosed") == 1
    assert {"check-removed", "check-appeared"}.isdisjoint(events)
    assert server.sessions.total() <= seen + 1


def test_an_agent_takes_a_polled_host_over(sqlite_site: Site, server: SshServer) -> None:
    """With the record and its history; from its first word on nobody asks over SSH any more."""
    site = sqlite_site
    collector = start(site, server, tls="on")
    add_polled(site, server, {"web-1": "127.0.0.1"})
    wait_until(lambda: is_fresh(site, "web-1"), what="a report over SSH")
    before = site.json("show", "web-1")
    assert before["source"] == "ssh"
    site.enroll("web-1")
    site.agent("web-1")
    wait_until(lambda: site.json("show", "web-1")["source"] == "agent", what="the agent's word")
    wait_until(lambda: not server.open, what="an end of polling")
    polls = server.sessions.total()
    seen = site.json("show", "web-1")["measured_at"]
    wait_until(lambda: site.json("show", "web-1")["measured_at"] > seen, what="more of its reports")
    after = site.json("show", "web-1")
    assert after["added_at"] == before["added_at"]
    assert len(site.json("hosts")["hosts"]) == 1
    assert server.sessions.total() == polls
    assert "conflict" not in kinds(site, "web-1")
    assert collector.stop() == 0
    assert "Traceback" not in collector.log


def test_whom_nobody_may_ask_is_not_asked_and_why_is_told(sqlite_site: Site, server: SshServer) -> None:
    site = sqlite_site
    # So seldom that a host is asked once.
    collector = start(site, server, ssh_port=str(server.port), ssh_fallback_interval="10m")
    site.cli("ssh", "group", "private", "--no-fallback", check=True)
    public, private = (site.agent(name, ttl="6s", groups=name) for name in ("public", "private"))
    wait_until(lambda: is_fresh(site, "public", "private"), what="reports")
    before = server.connections
    for agent in (public, private):
        agent.kill()
    assert "collector-cli ssh trust public" in diagnosed(site, "public", "not probed")["evidence"]
    assert "fallback" in diagnosed(site, "private", "not probed")["evidence"]
    assert 1 <= server.connections <= before + 1
    assert not server.users
    assert collector.stop() == 0


def test_a_mass_silence_is_asked_about_a_few_at_a_time(sqlite_site: Site, server: SshServer) -> None:
    """200 hosts fall silent at once; no more are asked at one time than a quarter of all places."""
    site = sqlite_site
    collector = start(site, server, ssh_port=str(server.port), ssh_concurrency="20", ssh_timeout="2s")
    fleet = site.fleet(200, "--interval", "1s", "--ttl", "6s")
    wait_until(lambda: site.json("status")["presence"]["fresh"] == 200, what="reports")
    fleet.kill()
    wait_until(lambda: server.connections > 100, seconds=60, what="many that were asked")
    assert server.most_in_all <= 5
    assert len(server.open) <= 20
    assert collector.stop() == 0


def test_no_more_connections_to_the_database_than_the_pool_has(
    mariadb_site: Site, mariadb: MariadbServer, server: SshServer
) -> None:
    site = mariadb_site
    start(site, server, pool_size="4")
    names = {f"web-{number}": f"127.0.0.{number}" for number in range(1, 41)}
    add_polled(site, server, names, interval=1_000)
    wait_until(lambda: min(server.sessions[address] for address in names.values()) >= 3, seconds=90)
    user = mariadb.query("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'fleet'")
    assert int(user[0][0]) <= 4 + 1  # and this test's own look
