"""One host behaves as badly as it can; the others must not notice, and the admin must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.attackers import BATCH
from tests.faults import LockRows
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import ROOT, Program, Site, clean_environ, wait_until

HOSTS = 100
TOGETHER = ("flood", "deaf", "heavy", "crowded", "absurd", "backwards", "flapping", "doubles", "clones")


def attack(site: Site, names: tuple[str, ...], seconds: float) -> dict[str, dict[str, Any]]:
    """Run attackers side by side; what each says it did and was told."""
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
        said = {name: process.communicate(timeout=seconds + 60)[0] for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {name: json.loads(out.splitlines()[-1]) for name, out in said.items()}


def peak_memory(program: Program) -> float:
    """The most that a process ever had resident, in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{program.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def stopped_counts(collector: Program) -> dict[str, Any]:
    """The counts that a collector logs when it stops."""
    assert collector.stop() == 0
    counts: dict[str, Any] = json.loads(collector.wait_for_log('"stopped"'))
    return counts


def assert_shown(site: Site, hostname: str) -> None:
    """Whatever a host has said, the admin can look at it, and its JSON is JSON."""
    shown = site.cli("show", hostname)
    assert hostname in shown.stdout, shown.stderr
    assert "Traceback" not in shown.stderr
    json.loads(site.cli("show", hostname, "--json").stdout, parse_constant=pytest.fail)


def attacked(site: Site, names: tuple[str, ...], seconds: float, **settings: str) -> tuple[Any, Any]:
    """Good hosts beside attackers; what the attackers were told, and what the collector counted."""
    collector = site.collector(**settings)
    ledger = site.folder / "ledger.json"
    duration = str(seconds + 4)
    fleet = site.fleet(HOSTS, "--interval", "1s", "--seconds", duration, "--ledger", str(ledger), "--burst")
    told = attack(site, names, seconds)
    hosts = {
        host["hostname"]: host for host in site.json("hosts")["hosts"] if host["hostname"].startswith("sim-")
    }
    for name in names if "absurd" in names else ():
        assert_shown(site, f"attacker-{name}")
    summary = json.loads(fleet.output().splitlines()[-1])
    # On time: nothing waits, nobody was taken for silent, and no stream was opened a second time.
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"] >= HOSTS * seconds * 0.8
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
    told, counts = attacked(mariadb_site, TOGETHER, 10)
    assert set(told["crowded"]) <= {"attack", "streams", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    assert told["absurd"]["INVALID_ARGUMENT"] >= 1
    assert told["backwards"]["INVALID_ARGUMENT"] >= 1
    # 1,000 at once and 100 a second.
    assert told["flood"]["messages"] * BATCH <= 1_000 + 100 * 10 + 400
    assert counts["paced"] >= 1
    # 24 at once and 12 a minute of each of five identities.
    assert told["flapping"]["OK"] <= 24 + 3
    assert told["flapping"]["RESOURCE_EXHAUSTED"] >= 1
    assert counts["too_many_hellos"] >= 1
    assert counts["replaced"] >= 1
    assert told["clones"]["ALREADY_EXISTS"] >= 1
    assert counts["conflict"] >= 1
    assert counts["malformed"] >= told["crowded"]["INVALID_ARGUMENT"]
    assert counts["streams"] <= HOSTS + len(TOGETHER) * 30 + 30


def test_hosts_are_on_time_beside_garbage_and_connections_that_say_nothing(sqlite_site: Site) -> None:
    names = ("oversized", "garbage", "headers", "idle", "trickling")
    told, counts = attacked(sqlite_site, names, 8, limits_hello_timeout="2s")
    assert told["oversized"]["RESOURCE_EXHAUSTED"] >= 1
    assert set(told["oversized"]) == {"attack", "streams", "RESOURCE_EXHAUSTED"}
    assert counts["broken"] >= 1
    assert set(told["garbage"]) == {"attack", "streams", "INVALID_ARGUMENT"}
    assert counts["malformed"] >= told["garbage"]["INVALID_ARGUMENT"] >= 8
    # Every one of them was shown out, many more than once.
    assert told["idle"]["cut off"] >= 2_000
    assert told["trickling"]["cut off"] >= 500
    assert told["headers"]["DEADLINE_EXCEEDED"] >= 800
    assert counts["no_hello"] >= 800
    # Some lines of each kind a minute, whoever it was.
    log = next(sqlite_site.folder.glob("*-collector.log")).read_text()
    refused = [json.loads(line) for line in log.splitlines() if '"refused"' in line]
    assert {"malformed", "no_hello"} <= {line["kind"] for line in refused}
    assert len(refused) <= 3 * 12
    assert {line["peer"] for line in refused} == {"127.0.0.1"}


def test_hosts_are_on_time_beside_strangers_impostors_and_clones(sqlite_site: Site) -> None:
    """All over TLS: with no certificate, a wrong one, somebody else's name, or somebody else's identity."""
    told, counts = attacked(sqlite_site, ("strangers", "impostors", "clones", "garbage"), 6, tls="on")
    assert set(told["strangers"]) == {"attack", "connections", "cut off"}
    assert told["strangers"]["cut off"] > 100
    assert counts["unauthenticated"] >= told["strangers"]["cut off"] - 8
    assert set(told["impostors"]) <= {"attack", "streams", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}
    assert counts["wrong_host"] >= told["impostors"]["PERMISSION_DENIED"] >= 8
    assert told["clones"]["ALREADY_EXISTS"] >= 1
    assert counts["conflict"] >= 1
    assert set(told["garbage"]) <= {"attack", "streams", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}


def test_an_outage_of_the_database_moves_no_stream(mariadb_site: Site, mariadb: MariadbServer) -> None:
    """It takes longer than an agent waits for an ack; but agents are told to go on waiting, and stay."""
    site, outage, hosts = mariadb_site, 14, 50
    collector = site.collector()
    ledger = site.folder / "ledger.json"
    duration = str(outage + 10)
    fleet = site.fleet(hosts, "--interval", "1s", "--seconds", duration, "--ledger", str(ledger))
    wait_until(lambda: len(site.json("hosts")["hosts"]) == hosts)
    before = peak_memory(collector)
    mariadb.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        fleet.wait(outage)
    assert peak_memory(collector) < before + 50
    mariadb.start()
    summary = json.loads(fleet.output().splitlines()[-1])
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"] >= hosts * outage
    database = database_of(site.database_url)
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
    fleet = site.fleet(hosts, "--interval", "500ms", "--seconds", "9", "--ledger", str(ledger))
    wait_until(lambda: len(site.json("hosts")["hosts"]) == hosts)
    database = database_of(site.database_url)
    with LockRows(mariadb, database), pytest.raises(subprocess.TimeoutExpired):
        fleet.wait(3)
    summary = json.loads(fleet.output().splitlines()[-1])
    assert summary["reports_waiting"] == 0
    marks = "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id"
    assert dict(mariadb.query(marks, database=database)) == json.loads(ledger.read_text())
    counts = stopped_counts(collector)
    assert counts["throttled"] >= hosts / 3
    assert counts["streams"] == hosts
