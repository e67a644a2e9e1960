"""collector-cli ssh test and probe, with real SSH servers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from collector.ssh import probe
from tests.collector.cli_inside import Cli
from tests.collector.cli_process import run_cli
from tests.collector.fleet import Fleet
from tests.collector.ssh_cli.records import add, stored
from tests.ssh_server import SshServer

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


# --- test ---


def test_what_a_host_measures_is_judged(
    tmp_path: Path, fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = subprocess.run(["/bin/sh", "-s"], input=probe.SCRIPT, capture_output=True, check=True).stdout
    with SshServer(tmp_path, output) as server:
        monkeypatch.setenv("FLEETPULSE_SSH_KEYS", str(server.key_file))
        add(cli, "web-1", server)
        cli("ssh", "trust", "web-1", "--yes")
        rules = tmp_path / "rules.toml"
        rules.write_text('[[rule]]\ncheck = "uptime"\nmeasurement = "system.uptime"\ncritical = 0\n')
        monkeypatch.setenv("FLEETPULSE_RULES", str(rules))
        answer = cli("ssh", "test", "web-1", "--json")
        assert answer.status == 0  # whatever its checks say
        assert [stage["name"] for stage in answer.json["stages"]] == [
            "address",
            "tcp",
            "login",
            "probe",
            "measured",
        ]
        assert all(stage["ok"] and stage["seconds"] >= 0 for stage in answer.json["stages"])
        assert answer.json["facts"] > 3
        worst = answer.json["checks"][0]
        assert (worst["check"], worst["state"]) == ("uptime", "CRITICAL")
        assert (answer.json["diagnosis"], answer.json["advice"]) == (None, None)
        assert "the worst is CRITICAL" in cli("ssh", "test", "web-1").out
        assert server.commands[-1] == probe.command()
        fleet.add("agent-1", address="127.0.0.1")
        add(cli, "agent-1", server)
        assert cli("ssh", "trust", "agent-1", "--yes").status == 0
        assert cli("ssh", "test", "agent-1", "--json").json["stages"][-1]["name"] == "agent"
        assert server.commands[-1] == probe.command(with_agent=True)
    assert stored(fleet.store)["web-1"].received_at == 0  # nothing is stored


@pytest.mark.parametrize(
    ("mode", "stage", "kind", "advice"),
    [
        ("refuse", "login", "refused our key", "ssh-copy-id -i"),
        ("nologin", "probe", "host up, probe failed", "does a shell start there?"),
        ("auth", "login", "frozen", "look at its console"),
    ],
)
def test_where_it_ends_and_what_to_do(
    cli: Cli, server: SshServer, mode: str, stage: str, kind: str, advice: str
) -> None:
    cli("ssh", "add", "web-1", "--timeout", "3s")
    assert cli("ssh", "trust", "web-1", "--yes").status == 0
    server.mode = mode
    ran = cli("ssh", "test", "web-1", "--json")
    assert ran.status == 2
    last = ran.json["stages"][-1]
    assert (last["name"], last["ok"]) == (stage, False)
    assert ran.json["diagnosis"]["kind"] == kind
    assert advice in ran.json["advice"]
    documented = re.findall(r"```json\n(.+?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    [example] = [found for text in documented if "stages" in (found := json.loads(text))]
    assert list(example) == list(ran.json)
    assert list(example["stages"][0]) == list(last)
    assert last["text"] == ran.json["diagnosis"]["evidence"]


def test_other_ends(cli: Cli, server: SshServer) -> None:
    def last(name: str = "web-1") -> tuple[str, str, str]:
        ran = cli("ssh", "test", name, "--json")
        assert ran.status == 2
        stage = ran.json["stages"][-1]
        return stage["name"], stage["text"], ran.json["advice"] or ""

    name, text, advice = last()
    assert (name, advice) == ("host key", "")
    assert "run: collector-cli ssh trust web-1" in text
    assert "To do" not in cli("ssh", "test", "web-1").out
    cli("ssh", "trust", "web-1", "--yes")
    server.key_file.chmod(0o644)
    name, text, advice = last()
    assert (name, advice) == ("key", "")
    assert f"run: chmod 600 {server.key_file}" in text
    server.key_file.chmod(0o600)
    cli("ssh", "add", "closed", "--address", "127.0.0.1", "--port", "1")
    assert last("closed")[0] == "tcp"
    assert "is sshd running there, and on port 1?" in last("closed")[2]
    cli("ssh", "add", "unknown.invalid")
    assert last("unknown.invalid")[0] == "address"
    assert "collector-cli ssh add unknown.invalid --address" in last("unknown.invalid")[2]
    assert cli("ssh", "test", "nobody").status == 3


def test_the_way_over_a_jump_host(cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]) -> None:
    def stages(name: str) -> tuple[list[tuple[str, bool]], str]:
        answer = cli("ssh", "test", name, "--json").json
        return [(stage["name"], stage["ok"]) for stage in answer["stages"]], answer["advice"] or ""

    gate = f"me@127.0.0.1:{server.port}"
    add(
        cli,
        "inner",
        servers[1],
        "--jump",
        gate,
        "--user",
        "root",
        "-o",
        "PubkeyAcceptedAlgorithms=ssh-ed25519",
    )
    assert stages("inner") == ([("jump", False)], "")  # the evidence says what to run
    assert cli("ssh", "trust", gate, "--yes").status == 0
    assert stages("inner") == ([("jump", True), ("host key", False)], "")
    assert cli("ssh", "trust", "inner", "--yes").status == 0
    servers[1].mode = "nologin"
    found, advice = stages("inner")
    assert found[:2] == [("jump", True), ("login", True)]
    assert f"ssh -p {servers[1].port} -J {gate} root@127.0.0.1 true" in advice
    servers[0].mode = "refuse"
    found, advice = stages("inner")
    assert found == [("jump", False)]
    assert advice == f"the way leads over 127.0.0.1: ssh -p {server.port} me@127.0.0.1"
    text = cli("ssh", "test", "inner").out
    assert f"  jump                      {gate}\n" in text
    assert "  PubkeyAcceptedAlgorithms  ssh-ed25519\n" in text


# --- probe ---


def test_the_probe_is_a_script_that_answers() -> None:
    script = run_cli(None, "ssh", "probe").stdout
    assert script.startswith("#!/bin/sh\n")
    ran = subprocess.run(
        ["/bin/sh", "-s"], input=script, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.startswith("fleetpulse-probe ")
    assert ran.stdout.endswith("== end\n")
