"""collector-cli ssh add and group."""

from __future__ import annotations

import pytest

from collector.core.ssh_settings import SshSettings
from collector.store.hosts import find_hosts
from collector.store.ssh_hosts import (
    load_group_settings,
)
from tests.collector.cli_inside import Cli
from tests.collector.fleet import Fleet
from tests.collector.ssh_cli.records import kinds, stored, version

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
