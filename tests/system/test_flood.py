"""One host behaves as badly as it can; the others must not notice, and the admin must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.attackers import BATCH
from tests.faults import LockRows
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import ROOT, Program, Site, clean_environ, wait_until

pytestmark = pytest.mark.timeout(400)  # attackers that got too little done try again

HOSTS = 100
TOGETHER = ("flood", "deaf", "heavy", "crowded", "absurd", "backwards", "flapping", "doubles", "clones")


def attack(
    site: Site, names: tuple[str, ...], seconds: float, least: Mapping[str, Mapping[str, int]]
) -> dict[str, Counter[str]]:
    """Run attackers side by side; how often each did what it does and was told what.

    Beside that, how many "runs" it had, and the "most messages" of one of them. Whoever has not done as much as
    `least` says, for the machine was busy with other things, tries again.
    """
    told: dict[str, Counter[str]] = {name: Counter() for name in names}
    deadline = time.monotonic() + 150
    remaining = names
    while remaining:
        for name, counts in attack_once(site, remaining, seconds).items():
            most = max(told[name]["most messages"], counts.get("messages", 0))
            told[name].update(counts, runs=1)
            told[name] |= Counter({"most messages": most})
        remaining = tuple(name for name in names if not told[name] >= Counter(least.get(name, {})))
        if remaining and time.monotonic() > deadline:
            pytest.fail(f"not done by {remaining}: {told}")
    return told


def attack_once(site: Site, names: tuple[str, ...], seconds: float) -> dict[str, dict[str, int]]:
    running = {
        name: subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.attackers",
                name,
                "--collector",
                site.address,
                "--seconds",
                str(seconds),
                *(site.enrolment_options() if site.has_tls else ()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean_environ({}),
            cwd=ROOT,
        )
        for name in names
    }
    try:
        said = {name: process.communicate(timeout=seconds + 90)[0] for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    found = {name: json.loads(out.splitlines()[-1]) for name, out in said.items()}
    assert all(counts.pop("attack") == name for name, counts in found.items())
    return found


def peak_memory(program: Program) -> float:
    """The most that a process ever had resident, in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{program.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def ended(fleet: Program) -> dict[str, Any]:
    """End a fleet that has no end of its own; what it says, after all is delivered."""
    assert fleet.stop(90) == 0
    summary: dict[str, Any] = json.loads(fleet.output().splitlines()[-1])
    return summary


def stopped_counts(collector: Program) -> dict[str, Any]:
    """The counts that a collector logs when it stops."""
    assert collector.stop() == 0
    counts: dict[str, Any] = json.loads(collector.wait_for_log('"stopped"'))
    return counts


def assert_shown(site: Site, hostname: str) -> None:
    """Whatever a host has said, the admin can look at it, and its JSON is JSON."""
    host_id = next(host["host_id"] for host in site.json("hosts")["hosts"] if host["hostname"] == hostname)
    shown = site.cli("show", host_id)
    assert hostname in shown.stdout, shown.stderr
    assert "Traceback" not in shown.stderr
    json.loads(site.cli("show", host_id, "--json").stdout, parse_constant=pytest.fail)


def attacked(
    site: Site,
    names: tuple[str, ...],
    seconds: float,
    least: Mapping[str, Mapping[str, int]],
    **settings: str,
) -> tuple[dict[str, Counter[str]], dict[str, Any]]:
    """Good hosts beside attackers; what the attackers were told, and what the collector counted."""
    collector = site.collector(**settings)
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(HOSTS, "--interval", "1s", "--ttl", "20s", "--ledger", str(ledger), "--burst")
    told = attack(site, names, seconds, least)
    wait_until(lambda: len(site.json("hosts")["hosts"]) >= HOSTS, what="the good hosts")
    hosts = {
        host["hostname"]: host for host in site.json("hosts")["hosts"] if host["hostname"].startswith("sim-")
    }
    for name in names if "absurd" in names else ():
        assert_shown(site, f"attacker-{name}")
    summary = ended(fleet)
    # On time: nobody waited for long, nothing waits, and nobody was taken for silent.
    assert summary["median_wait"] < seconds / 3
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"] >= HOSTS * seconds / 3
    assert len(hosts) == HOSTS
    assert {host["presence"] for host in hosts.values()} == {"fresh"}
    silent = [
        e for e in site.json("events", "--kind", "silent")["events"] if e["hostname"].startswith("sim-")
    ]
    assert not silent
    assert peak_memory(collector) < 500
    counts = stopped_counts(collector)
    assert "defect" not in collector.log
    assert "Traceback" not in collector.log
    return told, counts


def test_hosts_are_on_time_beside_floods_lies_and_doubles(mariadb_site: Site) -> None:
    least = {
        "absurd": {"INVALID_ARGUMENT": 1},
        "backwards": {"INVALID_ARGUMENT": 1},
        "clones": {"ALREADY_EXISTS": 1},
        "doubles": {"streams": 6},
        "flapping": {"RESOURCE_EXHAUSTED": 1},
        "flood": {"most messages": 1_200 // BATCH},
    }
    told, counts = attacked(mariadb_site, TOGETHER, 10, least)
    runs = {name: said["runs"] for name, said in told.items()}
    assert set(told["crowded"]) <= {"runs", "streams", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    # 1,000 at once and 100 a second.
    assert told["flood"]["messages"] * BATCH <= (1_000 + 100 * 10 + 400) * runs["flood"]
    assert counts["paced"] >= 1
    # 24 at once and 12 a minute of each of five identities.
    assert told["flapping"]["OK"] <= (24 + 3) * runs["flapping"]
    assert counts["too_many_hellos"] >= 1
    assert counts["replaced"] >= 1
    assert counts["conflict"] >= 1
    assert counts["malformed"] >= told["crowded"]["INVALID_ARGUMENT"]
    assert counts["streams"] <= HOSTS + sum(runs.values()) * 30 + 30


def test_hosts_are_on_time_beside_garbage_and_connections_that_say_nothing(sqlite_site: Site) -> None:
    names = ("oversized", "garbage", "headers", "idle", "trickling")
    # As many are shown out as come at once.
    least = {
        "oversized": {"RESOURCE_EXHAUSTED": 1},
        "garbage": {"INVALID_ARGUMENT": 8},
        "idle": {"cut off": 2_000},
        "trickling": {"cut off": 500},
        "headers": {"DEADLINE_EXCEEDED": 800},
    }
    began = time.monotonic()
    told, counts = attacked(sqlite_site, names, 8, least, limits_hello_timeout="2s")
    seconds = time.monotonic() - began
    assert set(told["oversized"]) == {"runs", "streams", "RESOURCE_EXHAUSTED"}
    assert counts["broken"] >= 1
    assert set(told["garbage"]) == {"runs", "streams", "INVALID_ARGUMENT"}
    assert counts["malformed"] >= told["garbage"]["INVALID_ARGUMENT"]
    assert counts["no_hello"] >= 800
    # Some lines of each kind a minute, whoever it was.
    log = next(sqlite_site.folder.glob("*-collector.log")).read_text()
    refused = [json.loads(line) for line in log.splitlines() if '"refused"' in line]
    assert {"malformed", "no_hello"} <= {line["kind"] for line in refused}
    assert max(Counter(line["kind"] for line in refused).values()) <= 5 + 0.2 * seconds + 1
    assert {line["peer"] for line in refused} == {"127.0.0.1"}


def test_hosts_are_on_time_beside_strangers_impostors_and_clones(sqlite_site: Site) -> None:
    """All over TLS: with no certificate, a wrong one, somebody else's name, or somebody else's identity."""
    least = {
        "strangers": {"cut off": 100},
        "impostors": {"PERMISSION_DENIED": 8},
        "clones": {"ALREADY_EXISTS": 1},
    }
    names = ("strangers", "impostors", "clones", "garbage")
    told, counts = attacked(sqlite_site, names, 6, least, tls="on")
    assert set(told["strangers"]) == {"runs", "connections", "cut off"}
    assert counts["unauthenticated"] >= told["strangers"]["cut off"] - 8 * told["strangers"]["runs"]
    assert set(told["impostors"]) <= {"runs", "streams", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}
    assert counts["wrong_host"] >= told["impostors"]["PERMISSION_DENIED"]
    assert counts["conflict"] >= 1
    assert set(told["garbage"]) <= {"runs", "streams", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}


def test_an_outage_of_the_database_moves_no_stream(mariadb_site: Site, mariadb: MariadbServer) -> None:
    """It takes longer than an agent waits for an ack; but agents are told to go on waiting, and stay."""
    site, outage, hosts = mariadb_site, 14, 50
    collector = site.collector()
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(hosts, "--interval", "1s", "--ledger", str(ledger))
    wait_until(lambda: len(site.json("hosts")["hosts"]) == hosts)
    before = peak_memory(collector)
    mariadb.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        fleet.wait(outage)
    assert peak_memory(collector) < before + 50
    mariadb.start()
    database = database_of(site.database_url)
    least = "SELECT MIN(seq) FROM host_seen"
    goal = mariadb.query(least, database=database)[0][0] + outage // 2
    wait_until(lambda: mariadb.query(least, database=database)[0][0] > goal, what="reports of the outage")
    summary = ended(fleet)
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"] >= hosts * outage / 2
    marks = "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id"
    assert dict(mariadb.query(marks, database=database)) == json.loads(ledger.read_text())
    counts = stopped_counts(collector)
    assert counts["streams"] == hosts
    assert counts["reports"] == summary["reports_acked"], "each was sent and committed once"
    assert counts["held"] >= hosts


def test_agents_pause_while_too_much_waits_and_go_on_when_it_is_gone(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    """Each of 150 agents has one report on its way, and only 100 may wait for the database."""
    site, hosts = mariadb_site, 150
    collector = site.collector(limits_queue_reports="100")
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(hosts, "--interval", "500ms", "--ledger", str(ledger))
    wait_until(lambda: len(site.json("hosts")["hosts"]) == hosts)
    database = database_of(site.database_url)
    with LockRows(mariadb, database), pytest.raises(subprocess.TimeoutExpired):
        fleet.wait(4)
    summary = ended(fleet)
    assert summary["reports_waiting"] == 0
    marks = "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id"
    assert dict(mariadb.query(marks, database=database)) == json.loads(ledger.read_text())
    counts = stopped_counts(collector)
    assert counts["throttled"] >= hosts / 3
    assert counts["streams"] == hosts
