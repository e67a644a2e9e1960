"""collector-cli ssh import."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from collector.cli import ssh_plan
from collector.config import Ssh
from collector.core.ssh_settings import SshSettings
from collector.ssh.target import Resolver
from collector.store.collectors import load_listening
from collector.store.hosts import find_hosts
from collector.store.ssh_hosts import (
    load_polled_numbers,
    load_silent_agents,
)
from tests.collector.cli_inside import Cli
from tests.collector.fleet import MINUTE, Fleet
from tests.collector.ssh_cli.records import kinds, stored, version

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
