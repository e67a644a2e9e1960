"""The command as people and programs call it, and the running agent as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.measure import Measured
from agent.once import as_json, as_table
from agent.units import readable
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, State
from tests.agent.scripted_collector import Script, serving, until

ROOT = Path(__file__).parents[2]
AGENT = [sys.executable, "-m", "agent.cli"]


def environ(state_dir: Path, **settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE")}
    own = {
        "FLEETPULSE_AGENT_STATE_DIR": str(state_dir),
        "FLEETPULSE_AGENT_INTERVAL": "200ms",
        "FLEETPULSE_AGENT_TLS": "off",
    }
    return clean | own | {f"FLEETPULSE_AGENT_{key}": value for key, value in settings.items()}


def call(state_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *arguments],
        env=environ(state_dir, **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


@contextmanager
def running(state_dir: Path, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen([*AGENT, "run"], env=environ(state_dir, **settings), cwd=ROOT, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_once_prints_what_a_report_says(tmp_path: Path) -> None:
    shown = call(tmp_path, "once", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    content = json.loads(shown.stdout)
    assert abs(content["measured_at"] / 1000 - time.time()) < 60
    checks = {check["name"]: check for check in content["checks"]}
    assert {"cpu", "memory", "filesystem", "load"} <= checks.keys()
    assert set(checks["cpu"]) == {"name", "instance", "state", "message", "measurements"}
    values = {m["name"]: m["value"] for m in checks["cpu"]["measurements"]}
    assert 0 <= values["system.cpu.utilization"] <= 1, "two rounds, so rates have values"
    assert not list(tmp_path.iterdir()), "once leaves nothing behind"


def test_once_as_a_table(tmp_path: Path) -> None:
    shown = call(tmp_path, "once")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "STATE", "MEASUREMENT", "VALUE"]
    column = lines[0].index("VALUE")
    memory = next(line for line in lines if "system.memory.limit" in line)
    assert re.fullmatch(r"[\d.]+ [KMGT]iB", memory[column:])


def test_the_table_shows_own_states_and_missing_values() -> None:
    layout = Layout(
        (
            CheckLayout(CheckKey("disk", "sda"), (Measurement("m", "By"), Measurement("n", "1"))),
            CheckLayout(CheckKey("plugin"), ()),
        )
    )
    results = (CheckResult(0, State.UNKNOWN, "timed out"), CheckResult(1, State.WARNING, "hot"))
    measured = Measured(1, layout, (2048.0, math.nan), results)
    assert as_table(measured).splitlines() == [
        "CHECK     STATE    MEASUREMENT  VALUE",
        "disk sda  UNKNOWN  timed out",
        "disk sda  UNKNOWN  m            2.0 KiB",
        "disk sda  UNKNOWN  n            -",
        "plugin    WARNING  hot",
    ]
    assert json.loads(as_json(measured))["checks"][0] == {
        "name": "disk",
        "instance": "sda",
        "state": "UNKNOWN",
        "message": "timed out",
        "measurements": [
            {"name": "m", "unit": "By", "value": 2048.0},
            {"name": "n", "unit": "1", "value": None},
        ],
    }


@pytest.mark.parametrize(
    ("name", "unit", "value", "text"),
    [
        ("x", "By", 1023, "1023 B"),
        ("x", "By", 1536, "1.5 KiB"),
        ("x", "By", 3 * 2**40, "3.0 TiB"),
        ("x", "By/s", 1 << 20, "1.0 MiB/s"),
        ("x", "1", 0.256, "25.6 %"),
        ("x", "s/s", 0.5, "50.0 %"),
        ("system.uptime", "s", 59, "59 s"),
        ("system.uptime", "s", 3 * 3600 + 125, "3 h 2 min"),
        ("system.uptime", "s", 90_000, "1 d 1 h"),
        ("system.boot_time", "s", 1.7e9, "1700000000 s since 1970"),
        ("x", "Cel", 45, "45.0 °C"),
        ("x", "{process}", 83.0, "83 process"),
        ("x", "{operation}/s", 0.25, "0.25 operation/s"),
        ("x", "1", math.nan, "-"),
    ],
)
def test_values_as_people_read_them(name: str, unit: str, value: float, text: str) -> None:
    assert readable(name, unit, value) == text


def test_check_config_shows_settings_and_their_origin(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('hostname = "here"\n')
    shown = call(tmp_path, "check-config", "--config", str(file))
    assert shown.returncode == 0
    assert shown.stdout.startswith(
        f"# from {file}, FLEETPULSE_AGENT_INTERVAL, FLEETPULSE_AGENT_STATE_DIR, FLEETPULSE_AGENT_TLS\n"
    )
    assert 'hostname = "here"' in shown.stdout
    assert "interval = 0.2" in shown.stdout


@pytest.mark.parametrize("command", ["run", "once", "check-config"])
def test_a_wrong_configuration_is_one_line_and_3(tmp_path: Path, command: str) -> None:
    shown = call(tmp_path, command, COLLECTOR="192.0.2.1:18443")
    assert (shown.returncode, shown.stdout) == (3, "")
    assert shown.stderr.startswith("fleet-agent: environment variable FLEETPULSE_AGENT_COLLECTOR: ")
    assert "plaintext is only allowed to loopback" in shown.stderr
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["run", "--bogus"]])
def test_wrong_usage_is_one_line_and_3(tmp_path: Path, arguments: list[str]) -> None:
    shown = call(tmp_path, *arguments)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (3, "", 1)


def test_help_and_version_answer_without_the_heavy_parts(tmp_path: Path) -> None:
    probe = "import sys; from agent.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    for arguments, heavy in (
        (["--version"], {"grpc", "psutil", "msgspec", "asyncio", "google.protobuf"}),
        (["--help"], {"grpc", "psutil", "msgspec", "asyncio", "google.protobuf"}),
        (["check-config"], {"grpc", "asyncio"}),
    ):
        shown = subprocess.run(
            [sys.executable, "-c", probe, *arguments],
            env=environ(tmp_path),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert not heavy & set(shown.stdout.splitlines()[-1].split())
    assert "exit codes" in call(tmp_path, "--help").stdout


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*AGENT, "check-config"],
        env=environ(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_a_malformed_host_id_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "host_id").write_text("garbage\n")
    shown = call(tmp_path, "run")
    assert shown.returncode == 3
    assert "should hold the host's UUID" in shown.stderr.splitlines()[-1]
    assert "Traceback" not in shown.stderr


def test_a_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = call(tmp_path / "file" / "state", "run")
    assert shown.returncode == 3
    assert re.fullmatch(r"fleet-agent: cannot use the state directory .*: Not a directory\n", shown.stderr)


def spooled(state: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{state}/spool.db?mode=ro", uri=True)) as spool:
        return int(spool.execute("SELECT COUNT(*) FROM report").fetchone()[0])


def test_a_running_agent_reports_survives_kill_9_and_stops_promptly(tmp_path: Path) -> None:
    async def test() -> None:
        script = Script()
        state, log = tmp_path / "state", tmp_path / "log"
        async with serving(script) as port:
            collector = f"127.0.0.1:{port}"
            with running(state, log, COLLECTOR=collector, HOSTNAME="box", GROUPS="lab") as agent:
                await until(lambda: len(script.reports) >= 3 and bool(script.facts))
                hello = script.hellos[0]
                assert (hello.hostname, hello.groups, hello.interval, hello.ttl) == (
                    "box",
                    ("lab",),
                    200,
                    600,
                )
                assert script.facts[0]["os.type"] == "linux"
                second = await asyncio.to_thread(call, state, "run", COLLECTOR=collector)
                assert second.returncode == 3
                assert f"another agent (process {agent.pid}) already uses {state}" in second.stderr
                agent.kill()
        # The collector is away now; what is measured waits on disk.
        with running(state, log, COLLECTOR=collector, LOG_FORMAT="json") as agent:
            await until(lambda: '"level": "warning"' in log.read_text())
            await until(lambda: spooled(state) >= 3)
            agent.kill()
        async with serving(script, port):
            with running(state, log, COLLECTOR=collector) as agent:
                known = len(script.reports)
                await until(lambda: len(script.reports) >= known + 3)
                begin = time.monotonic()
                agent.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(agent.wait, 10) == 0
                assert time.monotonic() - begin < 8
        seqs = script.seqs()
        assert seqs == list(range(1, len(seqs) + 1))
        assert len({(hello.host_id, hello.epoch) for hello in script.hellos}) == 1
        assert "Traceback" not in log.read_text()

    asyncio.run(test())


_HANGING = """
import sys, threading
import agent.service
class Hanging:
    def __init__(self, config, last_layout): pass
    def measure(self, now, at):
        print("hanging", flush=True)
        threading.Event().wait()
agent.service.Measurer = Hanging
from agent.cli import main
main(["run"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hanging_round_does_not_hold_up_the_stop(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HANGING],
        env=environ(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        begin = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert time.monotonic() - begin < 8
        assert process.stderr is not None
        assert "left behind" in process.stderr.read()
