"""collector-cli ssh, on both kinds of database, with real SSH servers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from collector.cli import ssh_plan, ssh_trust_hosts
from collector.cli.ssh_offers import Offer, Verdict
from collector.config import Ssh
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.ssh_settings import SshSettings
from collector.ssh import probe
from collector.ssh.target import Resolver, Target
from collector.ssh.trust import Trusted
from collector.store.collectors import load_listening
from collector.store.diagnoses import Finding, save_findings
from collector.store.hosts import find_hosts
from collector.store.labels import save_labels
from collector.store.ssh_hosts import (
    SshHost,
    load_group_settings,
    load_polled_numbers,
    load_silent_agents,
    load_ssh_hosts,
    load_version,
    save_ssh_host,
)
from collector.store.ssh_known_hosts import add_known_hosts, load_known_hosts
from collector.store.ssh_shares import Poller, take_shares
from collector.store.store import Store
from tests.collector.cli_inside import Cli, Ran
from tests.collector.cli_process import run_cli
from tests.collector.fleet import MINUTE, Fleet
from tests.ssh_server import SshServer

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def fleet(store: Store) -> Fleet:
    return Fleet(store)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[SshServer, SshServer]]:
    """Two machines that let the same key in."""
    with SshServer(tmp_path, b"nothing\n") as one, SshServer(tmp_path, b"nothing\n") as two:
        two.client_key = one.client_key
        one.client_key.write_private_key(one.key_file)
        one.key_file.chmod(0o600)
        yield one, two


@pytest.fixture
def server(
    servers: tuple[SshServer, SshServer], monkeypatch: pytest.MonkeyPatch, fleet: Fleet, cli: Cli
) -> SshServer:
    """A machine that is polled as web-1."""
    monkeypatch.setenv("FLEETPULSE_SSH_KEYS", str(servers[0].key_file))
    assert add(cli, "web-1", servers[0]).status == 0
    return servers[0]


def add(cli: Cli, name: str, server: SshServer, *more: str) -> Ran:
    return cli("ssh", "add", name, "--address", "127.0.0.1", "--port", str(server.port), *more)


def stored(store: Store) -> dict[str, SshHost]:
    with store.transaction(write=False) as tx:
        return {one.name: one for one in load_ssh_hosts(tx)}


def lines(store: Store) -> list[str]:
    with store.transaction(write=False) as tx:
        return load_known_hosts(tx)


def version(store: Store) -> str:
    with store.transaction(write=False) as tx:
        return load_version(tx)


def kinds(cli: Cli) -> list[str]:
    return [f"{event['kind']} {event['hostname']}" for event in cli("events", "--json").json["events"]]


def public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode().split()[:2])


# --- add ---


def test_an_unknown_machine_becomes_a_host_that_is_polled(fleet: Fleet, cli: Cli) -> None:
    ran = cli("ssh", "add", "web-1", "--user", "root", "--interval", "10s", "--group", "g")
    assert ran.status == 0
    one = stored(fleet.store)["web-1"]
    assert ran.out.startswith(f"added web-1 ({one.host_id}), which is polled from now on\n")
    assert "no keys and no agent are set" in ran.err
    assert one.is_polled
    assert one.settings == SshSettings(user="root", interval=10_000)
    assert one.groups == ("g",)
    assert (one.interval, one.ttl) == (10_000, 3 * 10_000 + 15_000)
    with fleet.store.transaction(write=False) as tx:
        record = find_hosts(tx, [one.host_id])[one.host_id]
    assert (record.record.agent_version, record.assigned) == ("", ("g",))
    assert kinds(cli) == ["added web-1"]
    host = cli("hosts", "--json").json["hosts"][0]
    assert (host["presence"], host["source"]) == ("never_seen", "ssh")


def test_the_interval_of_a_new_host_is_that_of_its_group(fleet: Fleet, cli: Cli) -> None:
    assert cli("ssh", "group", "g", "--interval", "20s", "--timeout", "5s").status == 0
    assert cli("ssh", "add", "web-1", "--group", "g").status == 0
    one = stored(fleet.store)["web-1"]
    assert (one.interval, one.ttl) == (20_000, 65_000)


def test_again_changes_only_what_is_given(fleet: Fleet, cli: Cli) -> None:
    cli("ssh", "add", "web-1", "--user", "root", "--port", "23", "-o", "Ciphers=aes128-ctr")
    before = version(fleet.store)
    ran = cli("ssh", "add", "WEB-1", "--port", "23")
    assert (ran.status, ran.out.count("\n")) == (0, 1)
    assert ran.out.endswith(": nothing changed\n")
    assert version(fleet.store) == before
    ran = cli("ssh", "add", "web-1", "--port", "24", "-o", "MACs=hmac-sha1", "--no-fallback", "--group", "g")
    assert sorted(ran.out.partition("): ")[2].strip().split(", ")) == [
        "MACs - -> hmac-sha1",
        "fallback - -> no",
        "joins g",
        "port 23 -> 24",
    ]
    assert version(fleet.store) != before
    assert stored(fleet.store)["web-1"].settings == SshSettings(
        user="root", port=24, fallback=False, options={"Ciphers": "aes128-ctr", "MACs": "hmac-sha1"}
    )
    assert cli("ssh", "add", "web-1", "--user", "", "--port", "0", "--fallback").status == 0
    assert stored(fleet.store)["web-1"].settings == SshSettings(
        fallback=True, options={"Ciphers": "aes128-ctr", "MACs": "hmac-sha1"}
    )
    assert kinds(cli) == ["added web-1"]


def test_a_host_with_an_agent_goes_on_reporting_by_it(fleet: Fleet, cli: Cli) -> None:
    fleet.add("web-1", groups=("own",))
    ran = cli("ssh", "add", "web-1", "--user", "root", "--group", "other")
    assert ran.status == 0
    assert "web-1 reports by its agent; SSH is asked when that is silent\n" in ran.out
    assert "--group changed nothing" in ran.err
    one = stored(fleet.store)["web-1"]
    assert (one.is_polled, one.settings, one.groups) == (False, SshSettings(user="root"), ("own",))
    assert cli("hosts", "--json").json["hosts"][0]["source"] == "agent"
    assert cli("ssh", "add", "web-1", "--user", "root").out.startswith("web-1 (")
    assert cli("ssh", "add", "web-1", "--user", "root", "--json").json["outcome"] == "unchanged"


@pytest.mark.parametrize("version", ["", "ssh"])
def test_a_host_without_an_agent_is_polled(fleet: Fleet, cli: Cli, version: str) -> None:
    _, record = fleet.add("web-1", ago=None, agent_version=version)
    assert "is polled from now on" in cli("ssh", "add", record.host_id).out
    assert stored(fleet.store)["web-1"].is_polled


def test_settings_that_somebody_spoiled_are_written_anew(fleet: Fleet, cli: Cli) -> None:
    cli("ssh", "add", "web-1")
    with fleet.store.transaction() as tx:
        tx.execute("UPDATE ssh_host SET settings = '{'")
    assert "stored settings make no sense" in cli("ssh", "list").out
    assert cli("ssh", "add", "web-1", "--port", "23").status == 0
    assert stored(fleet.store)["web-1"].settings == SshSettings(port=23)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a b",), "printable characters without blanks"),
        (("root@web-1",), "without the user, which --user says"),
        (("*",), "a name that ssh takes for something else"),
        (("6ba7b810-9dad-41d1-80b4-00c04fd430c8",), "no host 6ba7b810"),
        (("web-1", "--jump", "a:b"), "jump: 'a:b' is no"),
        (("web-1", "--user=-x"), "begins with a dash"),
        (("web-1", "--timeout", "1m"), "is too long"),
        (("web-1", "-o", "Foo=1"), "option Foo is not supported"),
        (("",), "a name has 1 to 255"),
        (("[web]",), "a name that ssh takes for something else, by [ ]"),
        (("web-1:23",), "without the port, which --port says"),
        (("web=1",), "no machine is called so, with ="),
        (
            ("web-1", "-o", "Ciphers=aes128-ctr,aes"),
            "there is no 'aes'; there are chacha20-poly1305@openssh.com, ",
        ),
        (("web-1", "-o", "macs=+x*"), "option MACs: there is no 'x*'"),
        (("web-1", "-o", "KexAlgorithms=x"), "option KexAlgorithms: there is no 'x'"),
        (("web-1", "-o", "HostKeyAlgorithms=x"), "option HostKeyAlgorithms: there is no 'x'"),
        (("web-1", "-o", "PubkeyAcceptedAlgorithms=x"), "option PubkeyAcceptedAlgorithms: there is no 'x'"),
        (("web-1", "--group", ""), "1 to 255 characters"),
        (("twin",), "'twin' may be any of 2 hosts"),
    ],
)
def test_what_cannot_be_added(fleet: Fleet, cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    fleet.add("twin")
    fleet.add("twin")
    ran = cli("ssh", "add", *arguments)
    assert (ran.status, ran.out) == (3, "")
    assert said in ran.err
    assert stored(fleet.store) == {}


def test_an_option_is_taken_back_by_an_empty_value(fleet: Fleet, cli: Cli) -> None:
    cli("ssh", "add", "web-1", "-o", "Ciphers=+aes128-cbc", "-o", "MACs=hmac-sha1")
    ran = cli("ssh", "add", "web-1", "-o", "Ciphers=")
    assert ran.out.endswith(": Ciphers +aes128-cbc -> -\n")
    assert stored(fleet.store)["web-1"].settings.options == {"MACs": "hmac-sha1"}
    cli("ssh", "group", "g", "-o", "MACs=hmac-sha1")
    assert cli("ssh", "group", "g", "-o", "macs=").out == "g, 0 hosts: MACs hmac-sha1 -> -\n"


def test_what_a_host_logs_in_with_may_come_from_its_group(fleet: Fleet, cli: Cli) -> None:
    cli("ssh", "group", "g", "--key", "/k")
    assert "not asked over SSH yet" not in cli("ssh", "add", "web-1", "--group", "g").err
    assert "web-2 is not asked over SSH yet: no keys and no agent" in cli("ssh", "add", "web-2").err


def test_only_what_is_new_is_told(fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETPULSE_SSH_KEYS", "/k")
    for number in range(3):
        fleet.add(f"agent-{number}")
    assert "asked from now on" not in cli("ssh", "add", "agent-0", "--port", "23").out
    ran = cli("ssh", "add", "agent-1", "--no-fallback")
    assert "asked from now on" not in ran.out
    assert "SSH is never asked" in ran.out
    monkeypatch.setenv("FLEETPULSE_SSH_FALLBACK", "false")
    assert "SSH is asked from now on when its agent is silent" in cli("ssh", "add", "agent-2").out


# --- group ---


def test_settings_of_a_group(fleet: Fleet, cli: Cli) -> None:
    fleet.add("web-1", groups=("g",))
    assert cli("ssh", "group", "g").out == "g, 1 host: nothing\n"
    ran = cli("ssh", "group", "g", "--jump", "gate", "--concurrency", "5", "--key", "/k")
    assert sorted(ran.out.partition(": ")[2].strip().split(", ")) == [
        "concurrency - -> 5",
        "jump - -> gate",
        "key - -> /k",
    ]
    before = version(fleet.store)
    assert cli("ssh", "group", "g", "--jump", "gate").out == "g, 1 host: nothing changed\n"
    assert version(fleet.store) == before
    with fleet.store.transaction(write=False) as tx:
        assert load_group_settings(tx) == {"g": SshSettings(jump="gate", concurrency=5, key="/k")}
    assert cli("ssh", "group", "g", "--json").json["settings"]["concurrency"] == 5
    assert "no host is in group h yet" in cli("ssh", "group", "h", "--port", "23").err
    assert cli("ssh", "group", "g", "--clear", "--port", "23").status == 3
    assert cli("ssh", "group", "g", "--clear").status == 0
    with fleet.store.transaction(write=False) as tx:
        assert list(load_group_settings(tx)) == ["h"]
    assert version(fleet.store) != before


# --- import ---

INVENTORY: dict[str, Any] = {
    "_meta": {
        "hostvars": {
            "web-1": {"ansible_host": "192.0.2.1", "ansible_user": "root"},
            "web-2": {"ansible_ssh_common_args": "-J gate -o ControlPersist=60s"},
            "here": {"ansible_connection": "local"},
        }
    },
    "all": {"children": ["web", "ungrouped"]},
    "web": {"hosts": ["web-1", "web-2"]},
    "ungrouped": {"hosts": ["agent-1", "here"]},
}


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(INVENTORY))
    return path


def test_an_inventory_is_imported_once(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    fleet.add("agent-1", groups=("own",))
    dry = cli("ssh", "import", str(inventory), "--group", "lab", "--dry-run")
    assert dry.out.startswith("OK: would be: 2 created, 1 changed, 0 unchanged\n")
    assert stored(fleet.store) == {}
    ran = cli("ssh", "import", str(inventory), "--group", "lab")
    assert ran.status == 0
    assert ran.out.startswith("OK: 2 created, 1 changed, 0 unchanged\n")
    assert "here     left out  ansible_connection is local" in ran.out
    assert ran.err.count("\n") == 1
    assert "left out: ControlPersist of 1 machine" in ran.err
    found = stored(fleet.store)
    assert {name: (one.is_polled, one.settings, one.groups) for name, one in found.items()} == {
        "web-1": (True, SshSettings(address="192.0.2.1", user="root"), ("lab", "web")),
        "web-2": (True, SshSettings(jump="gate"), ("lab", "web")),
        "agent-1": (False, SshSettings(), ("own",)),
    }
    assert kinds(cli) == ["added web-1", "added web-2"]
    before = version(fleet.store)
    again = cli("ssh", "import", str(inventory), "--group", "lab", "--json").json
    assert sorted(again.pop("unchanged")) == ["agent-1", "web-1", "web-2"]
    assert again == {"dry_run": False, "created": [], "changed": [], "removed": [], "left_out": ["here"]}
    assert version(fleet.store) == before


def test_an_inventory_says_all_of_how_a_host_is_reached(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    cli("ssh", "import", str(inventory))
    cli("ssh", "add", "web-1", "--port", "23", "--interval", "1m", "--no-fallback", "--group", "mine")
    ran = cli("ssh", "import", str(inventory))
    assert "web-1    changed    port 23 -> -, leaves mine" in ran.out
    one = stored(fleet.store)["web-1"]
    assert one.settings == SshSettings(address="192.0.2.1", user="root", interval=60_000, fallback=False)
    assert one.groups == ("web",)
    with fleet.store.transaction(write=False) as tx:
        assert find_hosts(tx, [one.host_id])[one.host_id].assigned == ("web",)


def test_all_of_an_inventory_or_nothing(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    wrong = {
        "a": {},
        "b": {"ansible_user": "{{ admin }}"},
        "c": {"ansible_port": "x"},
    }
    path.write_text(json.dumps({"_meta": {"hostvars": wrong}, "g": {"hosts": ["a", "b", "c"]}}))
    ran = cli("ssh", "import", str(path))
    assert (ran.status, ran.out) == (3, "")
    assert ran.err == (
        "collector-cli: nothing was changed, because of 2 machines: b: ansible_user is a template, "
        "'{{ admin }}', which only Ansible can fill in; c: ansible_port: 'x' is no whole number\n"
    )
    fleet.add("twin")
    fleet.add("twin")
    path.write_text("a\ntwin\n")
    assert "'twin' may be any of 2 hosts" in cli("ssh", "import", str(path)).err
    assert stored(fleet.store) == {}
    assert cli("ssh", "import", str(tmp_path / "none")).err.endswith("No such file or directory\n")


def test_what_an_import_says(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    for dry in (("--dry-run",), ()):
        out = cli("ssh", "import", str(inventory), *dry).out
        assert re.search(r"web-1 +created +address 192\.0\.2\.1, user root, joins web\n", out)
        assert ("next: collector-cli ssh trust --untrusted && collector-cli ssh test agent-1\n" in out) is (
            not dry
        )
    assert "next:" not in cli("ssh", "import", str(inventory)).out
    inventory.write_text(
        json.dumps(
            {"_meta": {"hostvars": {"a": {"ansible_ssh_common_args": "-c rot13"}}}, "g": {"hosts": ["a"]}}
        )
    )
    assert "a: option Ciphers: there is no 'rot13'" in cli("ssh", "import", str(inventory)).err


def test_a_list_of_names_on_standard_input(fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"web-1\nweb-2 # spare\n")))
    assert cli("ssh", "import", "-").out.startswith("OK: 2 created")
    assert set(stored(fleet.store)) == {"web-1", "web-2"}


def settings_only(path: Path, **variables: dict[str, Any]) -> str:
    """An inventory of machines in the group `lab`."""
    path.write_text(json.dumps({"_meta": {"hostvars": variables}, "lab": {"hosts": list(variables)}}))
    return str(path)


def test_only_how_hosts_are_asked_while_their_agents_are_silent(
    fleet: Fleet, cli: Cli, tmp_path: Path
) -> None:
    fleet.add("expected", ago=None, agent_version="", groups=("own",))
    fleet.add("agent", groups=("own",))
    cli("ssh", "add", "polled", "--group", "own", "--interval", "1m")
    named = settings_only(
        tmp_path / "i.json",
        **{
            name: {"ansible_host": f"192.0.2.{number}"}
            for number, name in enumerate(("EXPECTED", "agent", "polled", "unknown+machine"), 1)
        },
        here={"ansible_connection": "local"},
    )
    dry = cli("ssh", "import", "--no-poll", named, "--dry-run")
    assert dry.out.startswith("OK: would be: 0 created, 3 changed, 0 unchanged\n")
    assert set(stored(fleet.store)) == {"polled"}
    ran = cli("ssh", "import", "--no-poll", named)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("OK: 0 created, 3 changed, 0 unchanged\n")
    for name, why in (
        ("unknown+machine", "no such host: not imported, and never enrolled"),
        ("here", "ansible_connection is local"),
    ):
        assert re.search(rf"^{re.escape(name)} +left out +{why}$", ran.out, re.MULTILINE)
    assert {name: (one.is_polled, one.settings, one.groups) for name, one in stored(fleet.store).items()} == {
        "expected": (False, SshSettings(address="192.0.2.1"), ("own",)),
        "agent": (False, SshSettings(address="192.0.2.2"), ("own",)),
        "polled": (True, SshSettings(address="192.0.2.3", interval=60_000), ("own",)),
    }
    assert kinds(cli) == ["added polled"]
    before = version(fleet.store)
    again = cli("ssh", "import", "--no-poll", named, "--json").json
    assert (sorted(again["unchanged"]), again["changed"]) == (["agent", "expected", "polled"], [])
    assert sorted(again["left_out"]) == ["here", "unknown+machine"]
    assert version(fleet.store) == before
    ran = cli("ssh", "import", "--no-poll", named, "--group", "lab")
    assert (ran.status, ran.out) == (3, "")
    assert "--group does not go with --no-poll" in ran.err


def test_a_host_that_never_came_is_asked_where_the_inventory_says(
    fleet: Fleet, cli: Cli, tmp_path: Path
) -> None:
    named = settings_only(tmp_path / "i.json", **{"web-1": {"ansible_host": "192.0.2.1", "ansible_port": 23}})
    cli("hosts", "import", named)
    cli("ssh", "import", "--no-poll", named)
    [host] = cli("hosts", "--json").json["hosts"]
    assert (host["presence"], host["source"], host["groups"]) == ("never_seen", "agent", ["lab"])
    with fleet.store.transaction(write=False) as tx:
        [silent] = load_silent_agents(tx, load_listening(tx), fleet.now + MINUTE)
        assert load_polled_numbers(tx) == frozenset()
    assert silent.is_configured
    target = Resolver(Ssh()).target(silent.ssh, {})
    assert (target.name, target.address, target.port) == ("web-1", "192.0.2.1", 23)
    # Whoever wants it polled after all says so.
    assert "web-1  changed  is polled from now on\n" in cli("ssh", "import", named).out


def test_pruning(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    for name in ("old-1", "here", "web-2"):
        cli("ssh", "add", name)
    fleet.add("agent-2")
    cli("ssh", "add", "agent-2")
    ran = cli("ssh", "import", str(inventory), "--prune")
    assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    assert "web-1" not in stored(fleet.store)
    dry = cli("ssh", "import", str(inventory), "--prune", "--dry-run", "--json").json
    assert (dry["removed"], sorted(dry["created"])) == (["old-1"], ["agent-1", "web-1"])
    ran = cli("ssh", "import", str(inventory), "--prune", "--yes")
    assert "1 removed" in ran.out
    # What is named stays, also if it is left out; a host with an agent stays, whatever is named.
    assert set(stored(fleet.store)) == {"web-1", "web-2", "agent-1", "here", "agent-2"}
    assert "removed old-1" in kinds(cli)
    assert cli("ssh", "import", str(inventory), "--prune", "--json").json["removed"] == []


def test_two_at_once_make_one_record(
    fleet: Fleet, cli: Cli, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else imports the same between the look and the change."""
    plan, looked = ssh_plan.plan, []

    def look(*arguments: Any) -> Any:
        steps = plan(*arguments)
        if not looked:
            looked.append(1)
            tx = arguments[0]
            ssh_plan.note_change(tx)
            ssh_plan.carry_out(tx, plan(*arguments), ssh_plan.Ssh(), fleet.now)
        return steps

    monkeypatch.setattr(ssh_plan, "plan", look)
    assert cli("ssh", "import", str(inventory)).status == 0
    assert sorted(kinds(cli)) == ["added agent-1", "added web-1", "added web-2"]


def test_five_thousand_hosts_take_seconds(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    names = [f"host-{number:04}" for number in range(5_000)]
    variables = {
        name: {"ansible_host": f"10.0.{i // 250}.{i % 250}", "ansible_user": "x"}
        for i, name in enumerate(names)
    }
    path = tmp_path / "big.json"
    path.write_text(
        json.dumps({"_meta": {"hostvars": variables}, "g": {"hosts": names}, "h": {"hosts": names[:2_500]}})
    )
    began = time.process_time()
    assert cli("ssh", "import", str(path)).out.startswith("OK: 5000 created")
    assert cli("ssh", "import", str(path)).out.startswith("OK: 0 created, 0 changed, 5000 unchanged")
    assert len(cli("ssh", "list", "--group", "h", "--json").json["hosts"]) == 2_500
    assert time.process_time() - began < 10  # seconds; it takes about one


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


# --- trust ---


def test_the_keys_that_hosts_show_are_trusted(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    add(cli, "web-2", servers[1])
    cli("ssh", "add", "web-3", "--address", "127.0.0.1", "--port", "1")
    before = version(fleet.store)
    ran = cli("ssh", "trust", "web-1", "web-2", "web-3")
    assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    assert lines(fleet.store) == []
    ran = cli("ssh", "trust", "web-1", "web-2", "web-3", "--yes")
    assert ran.status == 1
    assert ran.out.startswith("WARNING: 2 of 3 hosts trusted\n")
    assert server.host_key.get_fingerprint() in ran.out
    assert "web-3  127.0.0.1:1" in ran.out
    assert set(lines(fleet.store)) == {
        f"web-1 {public(servers[0].host_key)}",
        f"web-2 {public(servers[1].host_key)}",
    }
    assert version(fleet.store) != before
    again = cli("ssh", "trust", "web-1")  # asks nothing
    assert (again.status, again.out.splitlines()[1].split()[-2:]) == (0, ["FINGERPRINT", "STATE"])
    assert again.out.endswith("  trusted\n")
    assert cli("ssh", "test", "web-1").out.count("host key ssh-ed25519") == 1


def test_another_key_is_refused_until_it_is_to_replace_the_old_one(
    fleet: Fleet, cli: Cli, server: SshServer
) -> None:
    old, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    by_address = f"other,[127.0.0.1]:{server.port} {public(old)}"
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1 {public(old)}", by_address, f"web-9 {public(other)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes")
    assert ran.status == 2
    for key in (old, server.host_key):
        assert key.get_fingerprint() in ran.out
    assert len(lines(fleet.store)) == 3
    answer = cli("ssh", "trust", "web-1", "--yes", "--json").json
    assert (answer["state"], answer["hosts"][0]["trusted"]) == ("CRITICAL", False)
    assert answer["hosts"][0]["known"] == [{"type": "ssh-ed25519", "fingerprint": old.get_fingerprint()}]
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert (ran.status, ran.err) == (0, "")
    # Others who share the line keep it.
    assert set(lines(fleet.store)) == {
        f"web-9 {public(other)}",
        f"other {public(old)}",
        f"web-1 {public(server.host_key)}",
    }


def test_a_key_that_a_pattern_vouches_for_cannot_be_replaced_silently(
    fleet: Fleet, cli: Cli, server: SshServer
) -> None:
    old = asyncssh.generate_private_key("ssh-ed25519")
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-* {public(old)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert f"{old.get_fingerprint()} is still trusted" in ran.err
    assert len(lines(fleet.store)) == 2


def test_a_revoked_key_is_never_trusted(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"@revoked * {public(server.host_key)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert ran.status == 2
    assert "shows a revoked key" in ran.out
    assert len(lines(fleet.store)) == 1


def test_a_fingerprint_decides(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    ran = cli("ssh", "trust", "web-1", "--fingerprint", f"SHA256:{'x' * 43}")
    assert (ran.status, ran.out) == (3, "")
    assert f"but ssh-ed25519 {server.host_key.get_fingerprint()}" in ran.err
    assert lines(fleet.store) == []
    assert cli("ssh", "trust", "web-1", "--fingerprint", server.host_key.get_fingerprint()).status == 0
    assert lines(fleet.store) == [f"web-1 {public(server.host_key)}"]
    assert cli("ssh", "trust", "web-1", "web-1x", "--fingerprint", "SHA256:x").status == 3


def test_a_jump_host_is_trusted_by_its_own_name(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    assert add(cli, "inner", servers[1], "--jump", f"127.0.0.1:{server.port}").status == 0
    ran = cli("ssh", "trust", "inner", "--yes")
    assert ran.status == 1
    assert "collector-cli ssh trust 127.0.0.1" in ran.out
    assert cli("ssh", "trust", "127.0.0.1", "--yes").status == 0
    # Another machine may answer at another port.
    assert lines(fleet.store) == [f"[127.0.0.1]:{server.port} {public(server.host_key)}"]
    assert cli("ssh", "trust", "inner", "--yes").status == 0
    assert f"inner {public(servers[1].host_key)}" in lines(fleet.store)
    ran = cli("ssh", "trust", "nobody", "--yes")
    assert ran.status == 3
    assert "no host nobody, and no jump host" in ran.err


def test_jump_hosts_at_one_address_are_told_apart_by_their_ports(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    one, two = servers
    add(cli, "a", one, "--jump", f"root@127.0.0.1:{one.port}")
    add(cli, "b", two, "--jump", f"127.0.0.1:{two.port}")
    assert cli("ssh", "trust", f"admin@127.0.0.1:{two.port}", "--yes").status == 0
    assert lines(fleet.store) == [f"[127.0.0.1]:{two.port} {public(two.host_key)}"]
    assert cli("ssh", "trust", "127.0.0.1", "--yes").status == 0
    assert set(lines(fleet.store)) == {
        f"[127.0.0.1]:{server.port} {public(server.host_key)}" for server in servers
    }
    assert "no host 127.0.0.1:1," in cli("ssh", "trust", "127.0.0.1:1", "--yes").err


def test_a_key_of_an_address_that_others_have_is_not_replaced(
    fleet: Fleet, cli: Cli, server: SshServer
) -> None:
    old = asyncssh.generate_private_key("ssh-ed25519")
    add(cli, "other", server)
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1 {public(old)}", f"[127.0.0.1]:{server.port} {public(old)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert f"{old.get_fingerprint()} is still trusted" in ran.err
    assert set(lines(fleet.store)) == {
        f"[127.0.0.1]:{server.port} {public(old)}",
        f"web-1 {public(server.host_key)}",
    }


def test_a_key_of_another_type_replaces_nothing(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1 {public(other)}"], 1)
    assert cli("ssh", "trust", "web-1", "--yes").status == 2
    ran = cli("ssh", "trust", "web-1", "--fingerprint", server.host_key.get_fingerprint())
    assert (ran.status, ran.err) == (0, "")
    assert len(lines(fleet.store)) == 2
    assert ran.out.splitlines()[2].endswith("trusted from now on")
    assert cli("ssh", "trust", "web-1").out.endswith("  trusted\n")


def test_each_key_says_how_it_stands() -> None:
    one, two, old = (
        asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-ed25519")
    )
    with_key = Offer(
        Target(1, "", "a", "b", 22, "c", (), None, (), 1.0, 1.0, {}), (one, two), Trusted((one,), own=(one,))
    )
    rows = ssh_trust_hosts._rows(with_key)
    assert [row[0].text for row in rows] == ["a", ""]
    assert [row[-1].text for row in rows] == ["trusted", "not trusted"]
    assert (with_key.verdict, with_key.fresh) == (Verdict.TRUSTED, [two])
    changed = with_key._replace(trusted=Trusted((two, old), own=(two, old)))
    assert [row[-1].text for row in ssh_trust_hosts._rows(changed)] == [
        "another key is trusted; if this one is right: --replace",
        "trusted",
        "the trusted one",
    ]


def test_a_host_may_be_trusted_by_its_ca(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    ca, key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"@cert-authority * {public(ca)}"], 1)
    server = SshServer(tmp_path, b"")
    with SshServer(tmp_path, b"") as other:
        add(cli, "web-2", other)
        # A CA that may vouch for it is not yet one that does.
        ran = cli("ssh", "trust", "web-2")
        assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    server.host_key = (key, ca.generate_host_certificate(key, "web-1", principals=["web-1"]))  # type: ignore[assignment]
    with server:
        add(cli, "web-1", server)
        ran = cli("ssh", "trust", "web-1")
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.endswith("  trusted by CA\n")
        assert len(lines(fleet.store)) == 1
        # Somebody who has its fingerprint trusts the key itself.
        assert cli("ssh", "trust", "web-1", "--fingerprint", key.get_fingerprint()).status == 0
    assert lines(fleet.store)[1:] == [f"web-1 {public(key)}"]


def test_many_are_trusted_without_naming_them(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    add(cli, "web-2", servers[1], "--group", "g")
    fleet.add("agent-1")
    assert cli("ssh", "trust", "--group", "g", "--yes").status == 0
    assert lines(fleet.store) == [f"web-2 {public(servers[1].host_key)}"]
    host = stored(fleet.store)["web-2"].host
    with fleet.store.transaction() as tx:
        save_labels(tx, [(host, "site", "x")])
    answer = cli("ssh", "trust", "--untrusted", "--label", "site", "--yes", "--json").json
    assert answer["hosts"] == []
    answer = cli("ssh", "trust", "--label", "site=x", "--yes", "--json").json
    assert [host["name"] for host in answer["hosts"]] == ["web-2"]
    assert cli("ssh", "trust", "--label", "site=y").err.endswith("no host has label site=y\n")
    answer = cli("ssh", "trust", "--untrusted", "--yes", "--json").json
    assert [host["name"] for host in answer["hosts"]] == ["web-1"]
    assert cli("ssh", "trust", "--untrusted").out.startswith("OK: 0 of 0 hosts trusted\n")
    assert cli("ssh", "trust", "--group", "nobody").status == 3


def test_a_private_key_is_no_authority(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    ran = cli("ssh", "trust", "--ca", str(server.key_file))
    assert (ran.status, ran.err) == (
        3,
        f"collector-cli: {server.key_file} is a private key; give {server.key_file}.pub\n",
    )
    assert "a pattern has no blanks" in cli("ssh", "trust", "--ca", str(server.key_file), "--for", "").err


def test_a_name_that_means_others_as_well_is_refused(fleet: Fleet, cli: Cli) -> None:
    fleet.add("*")
    ran = cli("ssh", "trust", "*", "--yes")
    assert ran.status == 3
    assert "collector-cli rename" in ran.err


def test_lines_of_files_and_authorities(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    key, ca = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    path = tmp_path / "known_hosts"
    path.write_text(
        f"# a comment\n\nweb-1,192.0.2.7   {public(key)}  somebody@somewhere\nweb-2 ssh-ed25519 AAAA\nx\n"
    )
    ran = cli("ssh", "trust", "--known-hosts", str(path))
    assert (ran.status, ran.out) == (0, "1 key trusted from now on, 0 trusted already\n")
    assert "2 lines left out: line 4 its key is not of the type ssh-ed25519, line 5 is no line" in ran.err
    assert (
        cli("ssh", "trust", "--known-hosts", str(path)).out
        == "0 keys trusted from now on, 1 trusted already\n"
    )
    (tmp_path / "ca.pub").write_text(f"{public(ca)} the CA\n")
    assert cli("ssh", "trust", "--ca", str(tmp_path / "ca.pub"), "--for", "*.lab").status == 0
    assert lines(fleet.store) == [f"web-1,192.0.2.7 {public(key)}", f"@cert-authority *.lab {public(ca)}"]
    assert cli("ssh", "trust", "--list", "--json").json["keys"] == [
        {
            "names": "web-1,192.0.2.7",
            "kind": "host",
            "type": "ssh-ed25519",
            "fingerprint": key.get_fingerprint(),
        },
        {"names": "*.lab", "kind": "ca", "type": "ssh-ed25519", "fingerprint": ca.get_fingerprint()},
    ]
    assert key.get_fingerprint() in cli("ssh", "trust", "--list").out
    before = version(fleet.store)
    ran = cli("ssh", "trust", "--forget", "web-1", "--forget", "*.lab")
    assert (ran.status, ran.out.count("forgot ssh-ed25519 SHA256:")) == (0, 2)
    assert lines(fleet.store) == [f"192.0.2.7 {public(key)}"]
    assert version(fleet.store) != before
    assert "no key of web-1 is trusted" in cli("ssh", "trust", "--forget", "web-1").err
    assert cli("ssh", "trust", "--ca", str(path)).status == 3
    assert cli("ssh", "trust", "--known-hosts", str(tmp_path / "none")).status == 3


def test_the_keys_in_a_file_replace_those_of_the_same_names(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    old, new, ca = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
    kept = [f"@cert-authority web-1 {public(ca)}", f"web-* {public(old)}", f"web-2 {public(old)}"]
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1,192.0.2.7 {public(old)}", *kept], 1)
    path = tmp_path / "known_hosts"
    path.write_text(f"web-1 {public(new)}\n")
    trust = ("ssh", "trust", "--known-hosts", str(path), "--replace")
    assert cli(*trust).out == "1 key trusted from now on, 0 trusted already, 1 forgotten\n"
    expected = [*kept, f"192.0.2.7 {public(old)}", f"web-1 {public(new)}"]
    assert sorted(lines(fleet.store)) == sorted(expected)
    before = version(fleet.store)
    assert cli(*trust, "--json").json == {"added": 0, "known": 1, "forgotten": 0}
    assert version(fleet.store) == before


def test_a_hashed_line_is_forgotten_by_its_name(fleet: Fleet, cli: Cli) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    salt = b"s" * 20
    digest = hmac.new(salt, b"web-1", hashlib.sha1).digest()
    hashed = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"{hashed} {public(key)}"], 1)
    assert cli("ssh", "trust", "--forget", "web-2").status == 3
    assert cli("ssh", "trust", "--forget", "web-1").status == 0
    assert lines(fleet.store) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("web-1", "--list"),
        ("web-1", "--untrusted"),
        ("web-1", "--label", "x"),
        ("--list", "--label", "x"),
        ("",),
        ("--list", "--forget", "x"),
        ("--list", "--replace"),
        ("--list", "--for", "x"),
        ("--known-hosts", "x", "--ca", "y"),
    ],
)
def test_ways_to_trust_that_do_not_go_together(fleet: Fleet, cli: Cli, arguments: tuple[str, ...]) -> None:
    ran = cli("ssh", "trust", *arguments)
    assert ran.status == 3
    assert "Usage: " in ran.err


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
