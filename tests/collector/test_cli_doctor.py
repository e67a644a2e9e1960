"""collector-cli doctor: what it concludes, and a whole run beside a real collector."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest

from collector.cli import findings
from collector.cli.doctor_ssh import look_at_keys
from collector.cli.findings import Finding
from collector.cli.main import run
from collector.ingest.refusals import COUNTED
from collector.store.collectors import CollectorRow, Listening
from collector.store.schema import upgrade
from collector.store.store import open_store
from fleetpulse.model import State
from tests.collector.cli_process import environment, run_cli
from tests.faults import ReadOnly
from tests.mariadb_server import MariadbServer
from tests.ports import free_ports
from tests.processes import wait_until

NOW = 1_000_000_000
States = Callable[..., tuple[int, dict[str, str]]]
SERVICE = Path(sys.executable).with_name("fleet-collector")


def collector(name: str = "a", *, ago: int = 0, stopped: bool = False, pool: int = 8) -> CollectorRow:
    return CollectorRow(
        name, "127.0.0.1:1", "0.1.0", pool, NOW - 60_000, NOW - ago, NOW - ago if stopped else None
    )


def test_a_slow_database_is_a_warning() -> None:
    assert findings.judge_database(3).state is State.OK
    assert findings.judge_database(1_500).state is State.WARNING


def test_pools_must_fit() -> None:
    def judge(budget: int | None, *rows: CollectorRow) -> Finding:
        return findings.judge_pool("a", 8, 10, budget, rows, NOW)

    assert judge(None).state is State.OK
    assert judge(18, collector("a")).state is State.OK
    assert judge(17, collector("a")).state is State.CRITICAL
    assert judge(26, collector("b")).state is State.OK
    full = judge(25, collector("b"))
    assert full.state is State.CRITICAL
    assert "8 here and 8 of 1 other live collector, of max_connections 25 less a reserve of 10" in full.text
    assert judge(18, collector("b", stopped=True), collector("c", ago=60_000)).state is State.OK


def test_a_slow_write_is_a_warning() -> None:
    assert findings.judge_writing(3).state is State.OK
    assert findings.judge_writing(1_500).state is State.WARNING


def test_a_collector_that_does_not_serve_says_why() -> None:
    told = findings.judge_refusal("here", "database: Too many connections (error 1040)")
    assert told.state is State.CRITICAL
    assert told.text == "here answers, but does not serve: database: Too many connections (error 1040)"
    assert "stopping" in findings.judge_refusal("here", "").advice


def test_somebody_must_listen() -> None:
    def judge(*rows: CollectorRow) -> Finding:
        return findings.judge_collectors(rows, Listening(NOW, None))

    assert judge(collector()).state is State.OK
    assert judge().state is State.CRITICAL
    assert "b was heard last, 1m 0s ago" in judge(collector("b", ago=60_000), collector("c", ago=90_000)).text
    assert judge(collector(), collector("b", ago=60_000)).state is State.WARNING
    assert judge(collector(), collector("b", ago=60_000, stopped=True)).state is State.OK


def test_clocks_and_disks() -> None:
    assert findings.judge_clock("clock", -1_999, "x").state is State.OK
    assert findings.judge_clock("clock", -2_001, "x").state is State.WARNING
    assert findings.judge_disk("/", 2**40, 2**41).state is State.OK
    assert findings.judge_disk("/", 2**29, 2**41).state is State.WARNING
    assert findings.judge_disk("/", 2**20, 2**41).state is State.CRITICAL


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> States:
    """Run doctor in this process: its exit code, and the state of each finding."""
    monkeypatch.setattr("collector.cli.doctor._HEALTH_TIMEOUT", 1.0)

    def diagnose(url: str, listen: str, **extra: str) -> tuple[int, dict[str, str]]:
        for name, value in {"DATABASE": url, "LISTEN": listen, "TLS": "off", **extra}.items():
            monkeypatch.setenv(f"FLEETPULSE_{name}", value)
        status = run(["doctor", "--json"])
        captured = capsys.readouterr()
        assert captured.err == ""
        found = json.loads(captured.out)["findings"]
        return status, {finding["name"]: finding["state"] for finding in found}

    return diagnose


@contextmanager
def running_collector(url: str, listen: str, **extra: str) -> Iterator[None]:
    process = subprocess.Popen(
        [SERVICE],
        env=environment(url, **{"FLEETPULSE_LISTEN": listen, "FLEETPULSE_TLS": "off", **extra}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
    finally:
        process.kill()


def test_a_house_in_order_and_out_of_it(database_url: str, tmp_path: Path, states: States) -> None:
    listen = f"unix:{tmp_path}/c.sock"
    status, found = states(database_url, listen)
    assert status == 2
    assert found["port"] == "CRITICAL"
    assert run_cli(database_url, "db", "upgrade").returncode == 0
    status, found = states(database_url, listen)
    assert (status, found["schema"], found["collectors"]) == (2, "OK", "CRITICAL")
    with running_collector(database_url, listen):
        deadline = time.monotonic() + 30
        while True:
            status, found = states(database_url, listen)
            if status == 0 or time.monotonic() > deadline:
                break
        assert set(found.values()) == {"OK"}
        assert {
            "configuration",
            "rules",
            "database",
            "schema",
            "writes",
            "pool",
            "collectors",
            "clock",
            "port",
            "refused",
        } <= set(found)
        assert ("disk" in found) is database_url.startswith("sqlite")
    status, found = states(database_url, listen)
    assert (found["collectors"], found["port"]) == ("CRITICAL", "CRITICAL")


def test_a_house_with_certificates(tmp_path: Path, states: States) -> None:
    url, folder, listen = f"sqlite:///{tmp_path}/f.db", tmp_path / "identity", f"127.0.0.1:{free_ports()[0]}"
    extra = {"TLS": "on", "IDENTITY_DIR": str(folder)}
    assert run_cli(url, "db", "upgrade").returncode == 0
    status, found = states(url, listen, **extra)
    assert (status, found["certificate"], found["port"]) == (2, "CRITICAL", "UNKNOWN")
    with running_collector(url, listen, **{f"FLEETPULSE_{name}": value for name, value in extra.items()}):
        wait_until(lambda: states(url, listen, **extra)[0] == 0)
        status, found = states(url, listen, **extra)
        assert {"ca", "certificate", "port", "refused"} <= set(found)
        (folder / "ca.key").chmod(0o644)
        status, found = states(url, listen, **extra)
        assert (status, found["certificate"], found["port"]) == (2, "CRITICAL", "UNKNOWN")


def test_certificates_are_renewed_in_time_or_told() -> None:
    day = 86_400_000

    def judge(age: float, *, is_own: bool = True) -> Finding:
        return findings.judge_certificate(
            NOW - round(age * day), NOW + round((90 - age) * day), NOW, is_own=is_own
        )

    assert judge(60).state is State.OK
    assert judge(64).state is State.WARNING
    assert "ca init" in judge(64).advice
    assert "no restart" in judge(64, is_own=False).advice
    assert judge(91).state is State.CRITICAL
    assert "expired 1d 0h ago" in judge(91).text
    assert findings.judge_ca("CN=x", NOW + 31 * day, NOW).state is State.OK
    assert findings.judge_ca("CN=x", NOW + 29 * day, NOW).advice == "run: collector-cli ca rotate"


def test_who_was_not_let_in_is_told() -> None:
    told = findings.judge_refused({"unauthenticated": 3, "enrolment_refused": 1, "reports": 10})
    assert told.state is State.OK
    assert told.text == (
        "since it started: 3 connections without an accepted certificate; 1 attempts to enrol"
    )
    assert findings.judge_refused({}).text == "since it started: nobody"
    assert set(findings._REFUSED) <= set(COUNTED)


def test_a_port_of_somebody_else(tmp_path: Path, states: States) -> None:
    url = f"sqlite:///{tmp_path}/f.db"
    run_cli(url, "db", "upgrade")
    with socket.create_server(("127.0.0.1", 0)) as other:
        status, found = states(url, f"127.0.0.1:{other.getsockname()[1]}")
    assert (status, found["port"], found["database"]) == (2, "CRITICAL", "OK")


def test_each_thing_that_is_wrong_is_said(tmp_path: Path, states: States) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\ncheck = 1\n")
    status, found = states(f"sqlite:///{tmp_path}/none.db", f"unix:{tmp_path}/s", RULES=str(rules))
    assert (status, found["rules"], found["database"]) == (2, "CRITICAL", "CRITICAL")
    status, found = states("", "nonsense")
    assert (status, found) == (2, {"configuration": "CRITICAL"})
    ran = run_cli(f"sqlite:///{tmp_path}/no/folder/f.db", "doctor", FLEETPULSE_LISTEN=f"unix:{tmp_path}/s")
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr


def test_a_server_with_too_few_connections(mariadb: MariadbServer, tmp_path: Path, states: States) -> None:
    url = mariadb.fresh_database()
    run_cli(url, "db", "upgrade")
    most = mariadb.query("SELECT @@max_connections")[0][0]
    _, found = states(url, f"unix:{tmp_path}/s", CONNECTION_RESERVE=str(most - 8))
    assert found["pool"] == "OK"
    _, found = states(url, f"unix:{tmp_path}/s", CONNECTION_RESERVE=str(most - 7))
    assert found["pool"] == "CRITICAL"


@pytest.mark.parametrize("url", ["mysql://root@/x?unix_socket=/nonexistent", "nonsense://"])
def test_a_database_that_cannot_be_had(url: str, tmp_path: Path, states: States) -> None:
    _, found = states(url, f"unix:{tmp_path}/s")
    assert found["database"] == "CRITICAL"


def test_a_database_that_can_be_read_and_takes_no_writes(
    mariadb: MariadbServer, tmp_path: Path, states: States
) -> None:
    url = mariadb.fresh_database()
    run_cli(url, "db", "upgrade")
    account = mariadb.account(url)
    with ReadOnly(mariadb, "whatever"):
        status, found = states(account, f"unix:{tmp_path}/s")
    assert (status, found["database"], found["schema"], found["writes"]) == (2, "OK", "OK", "CRITICAL")
    _, found = states(account, f"unix:{tmp_path}/s")
    assert found["writes"] == "OK"


def test_a_writer_that_does_not_let_go(
    tmp_path: Path, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.store.sqlite._BUSY_TIMEOUT", 0.05)
    url = f"sqlite:///{tmp_path}/f.db"
    run_cli(url, "db", "upgrade")
    other = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    _, found = states(url, f"unix:{tmp_path}/s")
    other.close()
    assert (found["database"], found["writes"], found["pool"]) == ("OK", "CRITICAL", "OK")


# --- ssh ---


@pytest.fixture
def fleet_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/f.db"
    store = open_store(url, pool_size=1, create=True)
    upgrade(store, lambda: 1)
    store.close()
    return url


def ssh_findings(found: dict[str, str]) -> dict[str, str]:
    return {name: state for name, state in found.items() if name.startswith("ssh")}


def test_nothing_of_ssh_where_it_is_not_in_use(states: States, fleet_url: str) -> None:
    assert ssh_findings(states(fleet_url, "127.0.0.1:1")[1]) == {}


def test_what_ssh_needs(
    states: States,
    fleet_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, agent, missing = tmp_path / "k", tmp_path / "agent", tmp_path / "missing"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o644)
    (tmp_path / "known").write_text("")
    monkeypatch.setenv("FLEETPULSE_DATABASE", fleet_url)
    assert run(["ssh", "add", "web-1"]) == 0
    capsys.readouterr()
    assert ssh_findings(states(fleet_url, "127.0.0.1:1")[1]) == {
        "ssh keys": "WARNING",
        "ssh hosts": "WARNING",
    }
    wrong = {
        "SSH_KEYS": str(key),
        "SSH_AGENT": str(agent),
        "SSH_CONFIG_FILE": str(missing),
        "SSH_KNOWN_HOSTS": str(missing),
    }
    assert ssh_findings(states(fleet_url, "127.0.0.1:1", **wrong)[1]) == {
        "ssh config_file": "CRITICAL",
        "ssh keys": "CRITICAL",
        "ssh agent": "CRITICAL",
        "ssh known_hosts": "CRITICAL",
    }
    key.chmod(0o600)
    (tmp_path / "config").write_text("Host *\n  Port 23\n")
    monkeypatch.delenv("FLEETPULSE_SSH_AGENT")
    right = {
        "SSH_KEYS": str(key),
        "SSH_CONFIG_FILE": str(tmp_path / "config"),
        "SSH_KNOWN_HOSTS": str(tmp_path / "known"),
    }
    assert ssh_findings(states(fleet_url, "127.0.0.1:1", **right)[1]) == {
        "ssh config_file": "OK",
        "ssh keys": "OK",
        "ssh known_hosts": "OK",
        "ssh hosts": "WARNING",
    }
    line = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    (tmp_path / "known").write_text(f"[web-1]:23 {line}")
    assert ssh_findings(states(fleet_url, "127.0.0.1:1", **right)[1])["ssh hosts"] == "OK"


def test_the_collectors_user_must_read_the_keys(tmp_path: Path) -> None:
    key = tmp_path / "k"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o600)
    assert look_at_keys([key], key.stat().st_uid, has_agent=False).state is State.OK
    told = look_at_keys([key], key.stat().st_uid + 1, has_agent=False)
    assert (told.state, "who cannot read it; run: chown" in told.text) == (State.CRITICAL, True)
    assert look_at_keys([], None, has_agent=True).state is State.OK


@pytest.mark.parametrize("name", ["KEYS", "KNOWN_HOSTS", "CONFIG_FILE"])
def test_the_files_of_ssh_are_part_of_the_configuration(tmp_path: Path, name: str) -> None:
    ran = subprocess.run(
        [SERVICE, "--check-config"],
        env=environment(None, **{f"FLEETPULSE_SSH_{name}": str(tmp_path / "none")}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 78
    assert f"fleet-collector: ssh.{name.lower()}: cannot read {tmp_path}/none: No such file" in ran.stderr
