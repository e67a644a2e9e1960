"""A real agent, a real collector, a real database, and what the admin sees of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from tests.mariadb_server import database_of
from tests.processes import Site, wait_until

MIB = 1 << 20


def show(site: Site, host: str = "agent"):
    return site.json("show", host)


def values_of(shown) -> dict[tuple[str, str, str], float]:
    return {(v["check"], v["instance"], v["measurement"]): v["value"] for v in shown["values"]}


def fresh_values(site: Site, host: str = "agent"):
    """The values of a report that was measured after this call."""
    began = show(site, host)["measured_at"]
    return values_of(wait_until(lambda: (s := show(site, host))["measured_at"] > began and s))


def meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def df(mount: str) -> tuple[int, int, int]:
    """Size and used bytes, and the percentage, as df prints them."""
    command = ["df", "--block-size=1", "--output=size,used,pcent", mount]
    fields = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1].split()
    )
    return int(fields[0]), int(fields[1]), int(fields[2].rstrip("%"))


def has_reported(site: Site, host: str = "agent") -> bool:
    return any(
        entry["hostname"] == host and entry["presence"] == "fresh" for entry in site.json("hosts")["hosts"]
    )


def test_what_show_says_of_this_machine_agrees_with_proc_and_df(site: Site):
    site.collector()
    site.agent()
    wait_until(lambda: has_reported(site), what="a report")
    # The machine changes between its report and our look, the more the more else runs on it.
    for _ in range(4):
        with suppress(AssertionError):
            return expect_this_machine(site)
    return expect_this_machine(site)


def expect_this_machine(site: Site) -> None:
    values = fresh_values(site)
    memory = meminfo()
    size, used, percent = df("/")
    assert values["memory", "", "system.memory.limit"] == memory["MemTotal"]
    available = values["memory", "", "system.memory.linux.available"]
    assert available == pytest.approx(memory["MemAvailable"], abs=300 * MIB)
    assert values["filesystem", "/", "system.filesystem.limit"] == size
    assert values[
        "filesystem", "/", "system.filesystem.usage{system.filesystem.state=used}"
    ] == pytest.approx(used, abs=200 * MIB)
    assert values["filesystem", "/", "system.filesystem.utilization"] * 100 == pytest.approx(percent, abs=1.5)
    stat = Path("/proc/stat").read_text().splitlines()
    boot_time = next(int(line.split()[1]) for line in stat if line.startswith("btime"))
    assert values["uptime", "", "system.boot_time"] == pytest.approx(boot_time, abs=1)
    assert values["cpu", "", "system.cpu.logical.count"] == os.cpu_count()
    assert 0 <= values["cpu", "", "system.cpu.utilization"] <= 1
    assert values["load", "", "system.cpu.load_average.1m"] == pytest.approx(os.getloadavg()[0], abs=1.5)
    running = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    assert values["processes", "", "system.process.count"] == pytest.approx(running, abs=25)
    facts = show(site)["facts"]
    assert facts["host.memory.size"] == str(memory["MemTotal"])
    assert os.uname().release in facts.values()


def test_a_killed_agent_is_stale_and_comes_back_with_one_event_each(site: Site):
    site.collector()
    agent = site.agent(interval="1s", ttl="8s")
    wait_until(lambda: has_reported(site), what="a report")
    assert site.cli("stale").returncode == 0

    agent.kill()
    (entry,) = wait_until(lambda: site.json("stale")["hosts"], what="the agent to be stale")
    stale = site.cli("stale")
    assert stale.returncode == 2
    assert "agent" in stale.stdout
    assert (entry["hostname"], entry["presence"]) == ("agent", "stale")
    assert entry["address"] == "127.0.0.1"
    last_report = show(site)["last_report_at"]

    site.agent(interval="1s", ttl="8s")
    wait_until(lambda: not site.json("stale")["hosts"], what="the agent's next report")
    assert site.cli("stale").returncode == 0
    events = site.json("events", "--host", "agent")["events"]
    kinds = [event["kind"] for event in events]
    assert kinds.count("back") == 1
    (silent,) = [event["at"] for event in events if event["kind"] == "silent"]
    # Never too early; and a look every 2 s, which a busy machine puts off, announces it.
    assert 8 < (datetime.fromisoformat(silent) - datetime.fromisoformat(last_report)).total_seconds() < 8 + 10


def test_a_killed_collector_loses_nothing_and_writes_nothing_twice(mariadb_site: Site, mariadb):
    site = mariadb_site
    collector = site.collector()
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(30, "--interval", "200ms", "--seconds", "10", "--ledger", str(ledger))
    wait_until(lambda: sum(stored_marks(site, mariadb).values()) > 200, what="reports under way")
    collector.kill()
    site.collector(upgrade=False)
    summary = wait_for_summary(fleet)
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"]
    assert stored_marks(site, mariadb) == load_ledger(ledger)
    kinds = [event["kind"] for event in site.json("events", "--limit", "10000")["events"]]
    assert kinds.count("added") == 30
    assert set(kinds) <= {"added", "state", "silent", "back", "fleet-silent", "fleet-back"}


def test_sigterm_drains_says_goodbye_and_ends_with_0(site: Site):
    collector = site.collector()
    agent = site.agent(interval="200ms")
    wait_until(lambda: has_reported(site), what="a report")
    assert collector.stop() == 0
    assert '"stopped"' in collector.log
    assert "Traceback" not in collector.log
    assert "goodbye" in agent.wait_for_log("goodbye")
    # Nobody listens now, so nobody is called stale for it.
    done = site.cli("stale")
    assert done.returncode == 3
    assert "no collector is listening" in done.stdout
    site.collector(upgrade=False)
    wait_until(lambda: site.json("stale")["state"] == "OK", what="the agent's return")
    assert site.cli("stale").returncode == 0


def test_sigterm_ends_in_time_while_the_database_says_nothing(mariadb_site: Site, mariadb):
    collector = mariadb_site.collector(drain_timeout="1s")
    mariadb_site.agent()
    wait_until(lambda: has_reported(mariadb_site), what="a report")
    os.kill(mariadb.pid, signal.SIGSTOP)
    try:
        assert collector.stop(seconds=30) == 0
    finally:
        os.kill(mariadb.pid, signal.SIGCONT)


def test_an_agent_that_died_while_the_collector_was_down_is_found(site: Site):
    collector = site.collector()
    agent = site.agent(ttl="8s")
    wait_until(lambda: has_reported(site), what="a report")
    collector.kill()
    agent.kill()
    site.collector(upgrade=False)
    assert site.json("stale")["state"] != "CRITICAL"  # too early to tell
    wait_until(lambda: site.json("stale")["state"] == "CRITICAL", what="a time-to-live to pass")
    assert site.cli("stale").returncode == 2


def test_sighup_judges_stored_values_by_the_new_rules(site: Site):
    rules = site.folder / "rules.toml"
    rules.write_text("")
    collector = site.collector(rules=str(rules))
    site.agent(interval="60s")
    wait_until(lambda: has_reported(site), what="a report")
    rules.write_text('[[rule]]\ncheck = "memory"\nmeasurement = "system.memory.limit"\ncritical = 1\n')
    collector.signal(signal.SIGHUP)
    wait_until(lambda: site.cli("status").returncode == 2, what="the stored report to be judged")
    (event,) = [event for event in site.json("events")["events"] if event["kind"] == "state"]
    assert (event["subject"], event["new"]) == ("memory", "CRITICAL")

    rules.write_text("[[rule]]\nchek = 1\n")
    collector.signal(signal.SIGHUP)
    line = collector.wait_for_log("the rules stay as they were")
    assert "chek" in line
    assert site.cli("status").returncode == 2
    assert collector.is_running


def test_garbage_on_the_port_harms_nobody(sqlite_site: Site):
    collector = sqlite_site.collector()
    sqlite_site.agent()
    host, _, port = sqlite_site.address.rpartition(":")
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 99,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(garbage)
    wait_until(lambda: has_reported(sqlite_site), what="a report beside the garbage")
    assert "Traceback" not in collector.log


def test_every_report_of_a_backlog_arrives_once(mariadb_site: Site, mariadb):
    """A database that goes away for a while: nothing is acked meanwhile, everything afterwards."""
    site = mariadb_site
    collector = site.collector()
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(20, "--interval", "300ms", "--seconds", "12", "--ledger", str(ledger))
    wait_until(lambda: len(site.json("hosts")["hosts"]) == 20, what="all hosts")
    mariadb.restart(signal.SIGKILL)
    summary = wait_for_summary(fleet)
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"] > 20 * 10
    assert stored_marks(site, mariadb) == load_ledger(ledger)
    assert collector.is_running
    assert "the database is back" in collector.log


def wait_for_summary(fleet):
    return json.loads(fleet.output().splitlines()[-1])


def load_ledger(path):
    return json.loads(path.read_text())


def stored_marks(site, mariadb):
    database = database_of(site.database_url)
    rows = mariadb.query(
        "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id", database=database
    )
    return dict(rows)
