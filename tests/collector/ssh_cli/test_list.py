"""collector-cli ssh list and remove."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import pytest

from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.ssh_settings import SshSettings
from collector.store.diagnoses import Finding, save_findings
from collector.store.labels import save_labels
from collector.store.ssh_hosts import (
    save_ssh_host,
)
from collector.store.ssh_known_hosts import add_known_hosts
from collector.store.ssh_shares import Poller, take_shares
from tests.collector.cli_inside import Cli
from tests.collector.fleet import MINUTE, Fleet
from tests.collector.ssh_cli.records import kinds, public, stored, version

# --- list ---


def test_how_hosts_are_reached_when_all_is_put_together(
    fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETPULSE_SSH_USER", "monitor")
    monkeypatch.setenv("FLEETPULSE_SSH_KEYS", "/site.key")
    fleet.listen()
    agent, _ = fleet.add("agent-1", ago=5 * MINUTE, groups=("g",), address="192.0.2.9")
    fleet.add("agent-2")
    with fleet.store.transaction() as tx:
        save_ssh_host(tx, agent, SshSettings(port=23), polled=False)
        take_shares(tx, Poller("c1", "run"), fleet.now)
        heard_at = fleet.now - 5 * MINUTE
        save_findings(
            tx,
            [Finding(agent, "agent-1", heard_at, Diagnosis(DiagnosisKind.HOST_DEAD, "no answer"))],
            fleet.now,
        )
    cli("ssh", "add", "web-1", "--group", "h", "--no-fallback")
    cli("ssh", "group", "g", "--jump", "root@gate", "--interval", "1m")
    answer = cli("ssh", "list", "--json").json
    one, web = answer["hosts"]
    assert (one["hostname"], one["mode"], one["presence"]) == ("agent-1", "fallback", "stale")
    assert (one["address"], one["port"], one["user"], one["jump"]) == (
        "192.0.2.9",
        23,
        "monitor",
        "root@gate",
    )
    assert (one["keys"], one["interval_seconds"], one["collector"]) == (["/site.key"], 60, "c1")
    assert one["diagnosis"]["kind"] == "host dead"
    assert one["settings"]["port"] == 23
    assert one["settings"]["jump"] is None
    assert (web["hostname"], web["mode"], web["address"], web["jump"]) == ("web-1", "polled", "web-1", None)
    assert [(group["name"], group["hosts"]) for group in answer["groups"]] == [("g", 1)]
    text = cli("ssh", "list").out
    assert "agent-1  fallback  monitor@192.0.2.9:23 through root@gate  -      c1" in text
    assert "host dead: no answer" in text
    assert "Nothing is asked over SSH" not in text
    assert "g      1      jump root@gate, interval 1m 0s" in text
    assert [host["hostname"] for host in cli("ssh", "list", "--group", "h", "--json").json["hosts"]] == [
        "web-1"
    ]
    assert cli("ssh", "list", "--group", "nobody").status == 3
    cli("ssh", "add", "agent-1", "--no-fallback")
    assert cli("ssh", "list", "--json").json["hosts"][0]["mode"] == "never"


def test_hosts_with_a_label(fleet: Fleet, cli: Cli) -> None:
    for name, group in (("web-1", "g"), ("web-2", "h"), ("web-3", "h")):
        cli("ssh", "add", name, "--group", group)
        cli("ssh", "group", group, "--port", "23")
    found = stored(fleet.store)
    with fleet.store.transaction() as tx:
        save_labels(tx, [(found[name].host, "site", name) for name in ("web-1", "web-2")])

    def listed(*arguments: str) -> tuple[list[str], list[tuple[str, int]]]:
        answer = cli("ssh", "list", "--json", *arguments).json
        return (
            [host["hostname"] for host in answer["hosts"]],
            [(group["name"], group["hosts"]) for group in answer["groups"]],
        )

    assert listed("--label", "site") == (["web-1", "web-2"], [("g", 1), ("h", 2)])
    assert listed("--label", "site=web-2") == (["web-2"], [("h", 2)])
    assert listed("--label", "site", "--group", "h") == (["web-2"], [("h", 2)])
    assert listed("web-1", "web-3", "--label", "site") == (["web-1"], [])
    ran = cli("ssh", "list", "--label", "site=web-3")
    assert (ran.status, ran.err) == (3, "collector-cli: no host has label site=web-3\n")


def test_some_hosts_and_where_they_are(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    cli("ssh", "add", "six", "--address", "2001:db8::7", "--user", "me", "--jump", "a,root@b:23")
    cli("ssh", "add", "web-1", "--address", "192.0.2.1")
    with fleet.store.transaction() as tx:
        take_shares(tx, Poller("c1", "run"), fleet.now)
    out = cli("ssh", "list", "six").out
    assert "me@[2001:db8::7]:22 through a, root@b:23" in out
    assert "web-1" not in out
    assert cli("ssh", "list", "nobody").status == 3
    assert {host["hostname"]: host["address"] for host in cli("hosts", "--json").json["hosts"]} == {
        "six": "2001:db8::7",
        "web-1": "192.0.2.1",
    }
    shown = cli("show", "six").out
    assert "  reached       me@[2001:db8::7]:22 through a, root@b:23\n" in shown
    assert "  collector     c1\n" in shown
    assert "  address       2001:db8::7\n" in shown
    assert "certificate" not in shown
    assert cli("show", "six", "--json").json["ssh"]["jump"] == ["a", "root@b:23"]
    assert "192.0.2.1" in cli("stale").out


def test_the_home_in_a_keys_name_is_that_of_the_collectors_user(
    fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/fleetpulse")
    monkeypatch.chdir(tmp_path)
    cli("ssh", "add", "a", "--key", "~/k")
    cli("ssh", "add", "b", "--key", "~nobody-at-all/k")
    cli("ssh", "add", "c", "--key", "k")
    assert [host["keys"] for host in cli("ssh", "list", "--json").json["hosts"]] == [
        ["/home/fleetpulse/k"],
        ["~nobody-at-all/k"],
        [f"{tmp_path}/k"],
    ]


def test_nothing_to_list(fleet: Fleet, cli: Cli) -> None:
    ran = cli("ssh", "list")
    assert ran.status == 0
    assert "no keys and no agent are set" in ran.out
    assert "no host is polled" in ran.out


# --- remove ---


def test_removing(fleet: Fleet, cli: Cli) -> None:
    fleet.add("agent-1")
    cli("ssh", "add", "agent-1", "--port", "23")
    cli("ssh", "add", "web-1")
    before = version(fleet.store)
    ran = cli("ssh", "remove", "agent-1", "web-1")
    assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    ran = cli("ssh", "remove", "agent-1", "web-1", "--yes")
    assert ran.status == 0
    assert [line.partition(" (")[0] for line in ran.out.splitlines()] == [
        "removed the SSH settings of agent-1",
        "removed web-1",
    ]
    assert stored(fleet.store) == {}
    assert [host["hostname"] for host in cli("hosts", "--json").json["hosts"]] == ["agent-1"]
    assert kinds(cli) == ["added web-1", "removed web-1"]
    assert version(fleet.store) != before
    ran = cli("ssh", "remove", "agent-1", "--yes")
    assert ran.status == 3
    assert "nothing is said of how agent-1 is reached over SSH" in ran.err


def test_trusted_keys_of_hosts_that_are_gone_are_told(fleet: Fleet, cli: Cli) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    for name in ("web-1", "web-2", "web-3"):
        cli("ssh", "add", name)
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1,web-2 {public(key)}"], 1)
    for command, name in ((("ssh", "remove"), "web-1"), (("remove",), "web-2")):
        ran = cli(*command, name, "--yes")
        assert ran.err.endswith(f"to trust them no more: collector-cli ssh trust --forget {name}\n")
    assert cli("ssh", "remove", "web-3", "--yes").err == ""
