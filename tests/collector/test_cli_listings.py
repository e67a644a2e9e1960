"""stale, status, hosts, show, events: what they find, on both kinds of database."""

from __future__ import annotations

import math
import uuid

import pytest

from collector.cli.events import Follower
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.silence import FleetSilence
from collector.core.ssh_settings import SshSettings
from collector.core.status import CheckStatus, Event, EventKind, Silence
from collector.store.conflicts import ConflictRow, save_conflict
from collector.store.diagnoses import Finding, save_findings
from collector.store.event_log import Filter
from collector.store.labels import save_labels
from collector.store.selection import Selection
from collector.store.silence import save_fleet_silence
from collector.store.ssh_hosts import save_ssh_host
from collector.store.store import Store
from fleetpulse.model import CheckKey, State
from tests.collector.cli_inside import Cli
from tests.collector.fleet import MINUTE, Fleet, failing


@pytest.fixture
def fleet(store: Store) -> Fleet:
    return Fleet(store)


# --- stale ---


def test_nobody_is_silent(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("web-1", ago=59_000, ttl=90_000)
    ran = cli("stale")
    assert (ran.status, ran.out) == (0, "OK: none of 1 host silent\n")


def test_silent_hosts_with_all_that_is_known(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("fresh")
    fleet.add("older", ago=50 * MINUTE, groups=("g1", "g2"), address="10.0.0.9")
    _, newer = fleet.add("newer", ago=5 * MINUTE, checks=failing(State.WARNING, "full", 1))
    ran = cli("stale")
    assert ran.status == 2
    assert ran.out.splitlines()[0] == "CRITICAL: 2 of 3 hosts silent: newer, older"
    assert ran.out.splitlines()[1].split() == [
        "HOST",
        "PRESENCE",
        "FOR",
        "SINCE",
        "LAST",
        "STATE",
        "ADDRESS",
        "GROUPS",
        "WHY",
    ]
    assert "g1,g2" in ran.out.splitlines()[3]
    answer = cli("stale", "--json").json
    assert (answer["state"], answer["hosts_total"]) == ("CRITICAL", 3)
    first, second = answer["hosts"]
    assert first["hostname"] == "newer"
    assert first["host_id"] == newer.host_id
    assert first["last_state"] == "WARNING"
    assert first["presence"] == "stale"
    assert first["silent_seconds"] == pytest.approx(300, abs=20)
    assert first["silent_since"] == first["last_report_at"]
    assert second["last_state"] == "OK"
    assert second["groups"] == ["g1", "g2"]
    assert second["address"] == "10.0.0.9"


def test_stale_can_be_narrowed(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("a", ago=5 * MINUTE, groups=("east",))
    fleet.add("b", ago=50 * MINUTE, groups=("west",))
    fleet.add("c", ago=2 * MINUTE, groups=("west", "north"))
    fleet.add("d", groups=("fresh",))

    def names(*arguments: str) -> list[str]:
        return [host["hostname"] for host in cli("stale", "--json", *arguments).json["hosts"]]

    assert names() == ["c", "a", "b"]
    assert names("--older-than", "4m") == ["a", "b"]
    assert names("--group", "west") == ["c", "b"]
    assert names("--group", "west", "--group", "east", "--older-than", "45m") == ["b"]
    assert cli("stale", "--group", "fresh").status == 0
    assert cli("stale", "--group", "west", "--json").json["hosts_total"] == 2
    ran = cli("stale", "--group", "wset")
    assert (ran.status, ran.err) == (3, "collector-cli: no host is in group wset\n")


def test_labels_narrow_every_listing(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    wanted = {
        "a": {"site": "berlin", "canary": "true"},
        "b": {"site": "berlin", "rack": ""},
        "c": {"site": "oslo", "canary": "false"},
        "d": {},
    }
    with_conflict = 0
    for name, labels in wanted.items():
        host, _ = fleet.add(name, ago=5 * MINUTE, groups=("west" if name in "ac" else "east",))
        with fleet.store.transaction() as tx:
            save_labels(tx, [(host, label, content) for label, content in labels.items()])
        fleet.event(host, name, Event(fleet.now, EventKind.REBOOT))
        with_conflict = with_conflict or host
    fleet.event(None, "", Event(fleet.now, EventKind.FLEET_SILENT))
    with fleet.store.transaction() as tx:
        save_conflict(
            tx, ConflictRow(with_conflict, b"p" * 16, "a", "192.0.2.9", "m", "h", "b", "i", 1, fleet.now)
        )

    def names(*arguments: str) -> str:
        """Of the hosts that all of the listings find."""
        found = set()
        for listing in ("stale", "status", "hosts", "events"):
            answer = cli(listing, "--json", *arguments).json
            rows = answer["events" if listing == "events" else "hosts"]
            those = "".join(sorted(row["hostname"] or "-" for row in rows))
            found.add(those)
            assert len(answer.get("conflicts", "a" if "a" in those else "")) == those.count("a")
            assert answer.get("hosts_total", len(rows)) == len(rows)
        [same] = found
        return same

    assert names("--label", "site=berlin") == "ab"
    assert names("--label", "site") == "abc"
    assert names("--label", "canary") == "ac"
    assert names("--label", "rack=") == "b"
    assert names("--label", "site=berlin", "--label", "canary=true") == "a"
    assert names("--label", "site=berlin", "--label", "canary=false") == ""
    assert names("--group", "west", "--label", "site=oslo") == "c"
    assert names("--group", "west", "--group", "east", "--label", "rack") == "b"
    hosts = cli("hosts", "--json").json["hosts"]
    assert {host["hostname"]: host["labels"] for host in hosts} == wanted
    silent = cli("stale", "--json").json["hosts"]
    assert {host["hostname"]: host["labels"] for host in silent} == wanted
    assert cli("show", "a", "--json").json["labels"] == wanted["a"]
    assert "  labels        canary=true, site=berlin\n" in cli("show", "a").out
    assert "labels" not in cli("show", "d").out


@pytest.mark.parametrize("listing", ["stale", "status", "hosts", "events"])
@pytest.mark.parametrize("label", ["site=paris", "Site", "site=Berlin", "%"])
def test_a_label_that_no_host_has(listing: str, label: str, fleet: Fleet, cli: Cli) -> None:
    """Not even one that has the key and the value apart, nor a group of that name."""
    host, _ = fleet.add("a", groups=("Site",))
    with fleet.store.transaction() as tx:
        save_labels(tx, [(host, "site", "berlin"), (host, "city", "paris")])
    ran = cli(listing, "--label", "site", "--label", label)
    assert (ran.status, ran.err) == (3, f"collector-cli: no host has label {label}\n")
    for wrong in ("", "=x", "k" * 256, f"k={'v' * 256}"):
        assert "KEY or KEY=VALUE" in cli(listing, "--label", wrong).err


def test_followed_events_can_be_narrowed(fleet: Fleet) -> None:
    one, _ = fleet.add("one", groups=("g",))
    two, _ = fleet.add("two")
    fleet.listen()
    with fleet.store.transaction(write=False) as tx:
        follower = Follower(tx, Filter(hosts=Selection(("g",))))
    for host, name in ((one, "one"), (two, "two"), (None, "")):
        fleet.event(host, name, Event(fleet.now, EventKind.REBOOT))
    with fleet.store.transaction(write=False) as tx:
        assert [event.hostname for event in follower.look(tx)] == ["one"]


def test_never_seen_is_a_warning(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("expected", ago=None)
    ran = cli("stale")
    assert ran.status == 1
    assert ran.out.startswith(
        "WARNING: none of 1 host silent; 1 of unknown presence or never seen: expected\n"
    )
    host = cli("stale", "--json").json["hosts"][0]
    assert (host["presence"], host["last_report_at"], host["last_state"]) == ("never_seen", None, None)
    assert host["silent_seconds"] == pytest.approx(7200, abs=20)


def test_silence_while_nobody_listened_is_unknown(fleet: Fleet, cli: Cli) -> None:
    fleet.listen(since=30_000)
    fleet.add("maybe", ago=5 * MINUTE)
    ran = cli("stale")
    assert ran.status == 1
    assert "maybe  unknown" in ran.out
    fleet.listen(since=2 * MINUTE)
    assert cli("stale").status == 2


def test_without_a_collector_nothing_can_be_said(fleet: Fleet, cli: Cli) -> None:
    fleet.listen(heard=5 * MINUTE)
    fleet.add("maybe", ago=6 * MINUTE)
    ran = cli("stale")
    assert ran.status == 3
    assert ran.out.startswith("UNKNOWN: no collector is listening; none of 1 host silent; 1 of unknown")
    assert "No collector is listening: " in ran.out.splitlines()[1]
    fleet.add("announced", ago=6 * MINUTE, silence=Silence.ALONE)
    ran = cli("stale")
    assert ran.status == 2
    assert ran.out.startswith(
        "CRITICAL: 1 of 2 hosts silent: announced; no collector is listening; 1 of unknown"
    )


def test_a_collectors_clock_is_the_one_that_counts(fleet: Fleet, cli: Cli) -> None:
    fleet.now += 86_400_000 * 365  # a collector that lives in the next year
    fleet.listen()
    fleet.add("fresh")
    fleet.add("gone", ago=2 * MINUTE)
    assert [host["hostname"] for host in cli("stale", "--json").json["hosts"]] == ["gone"]


@pytest.mark.parametrize("listening", [3_600_000, 65_000, None])
def test_the_query_finds_exactly_who_is_not_fresh(fleet: Fleet, cli: Cli, listening: int | None) -> None:
    if listening is not None:
        fleet.listen(since=listening)
    for ago in (None, 0, 30_000, 62_000, 90_000, 10 * MINUTE):
        for ttl in (45_000, 2 * MINUTE):
            for silence in Silence:
                fleet.add(f"{ago}-{ttl}-{silence.name}", ago=ago, ttl=ttl, silence=silence)
    hosts = {host["hostname"]: host["presence"] for host in cli("hosts", "--json").json["hosts"]}
    found = {host["hostname"]: host["presence"] for host in cli("stale", "--json").json["hosts"]}
    assert found == {name: presence for name, presence in hosts.items() if presence != "fresh"}
    assert found["0-120000-ALONE"] == "stale"
    assert "fresh" in hosts.values()


# --- why ---


def diagnose(
    fleet: Fleet, host: int, kind: DiagnosisKind, *, ago: int, text: str = "x", has_health: bool = False
) -> None:
    """A diagnosis of the silence since `ago`."""
    heard_at = fleet.now - ago if ago else 0
    with fleet.store.transaction() as tx:
        finding = Finding(host, "", heard_at, Diagnosis(kind, text), has_health)
        save_findings(tx, [finding], fleet.now - 30_000)


def test_why_hosts_are_silent(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("fresh")
    dead = [fleet.add(f"dead-{number}", ago=5 * MINUTE)[0] for number in range(2)]
    agent, _ = fleet.add("agent", ago=6 * MINUTE)
    fleet.add("unasked", ago=7 * MINUTE)
    back, _ = fleet.add("back", ago=8 * MINUTE)
    new, _ = fleet.add("new", ago=None)
    for host in dead:
        diagnose(fleet, host, DiagnosisKind.HOST_DEAD, ago=5 * MINUTE, text="no answer")
    diagnose(
        fleet,
        agent,
        DiagnosisKind.AGENT_DEAD,
        ago=6 * MINUTE,
        text="killed by the kernel\nmore",
        has_health=True,
    )
    diagnose(fleet, back, DiagnosisKind.HOST_DEAD, ago=9 * MINUTE)  # of an earlier silence
    diagnose(fleet, new, DiagnosisKind.NOT_PROBED, ago=0)
    text = cli("stale").out
    assert text.splitlines()[0] == (
        "CRITICAL: 5 of 7 hosts silent: dead-0, dead-1, agent, unasked, back "
        "(2 host dead; 1 agent dead, host up); 1 of unknown presence or never seen: new"
    )
    assert "host dead: no answer\n" in text
    assert "agent dead, host up: killed by the kernel\n" in text
    found = {host["hostname"]: host["diagnosis"] for host in cli("stale", "--json").json["hosts"]}
    assert found["agent"] == {
        "kind": "agent dead, host up",
        "evidence": "killed by the kernel\nmore",
        "since": found["agent"]["probed_at"],
        "probed_at": found["agent"]["health_at"],
        "health_at": found["agent"]["health_at"],
    }
    assert found["dead-0"]["kind"] == "host dead"
    assert found["dead-0"]["health_at"] is None
    assert found["new"]["kind"] == "not probed"
    assert found["unasked"] is found["back"] is None
    assert {host["hostname"]: host["source"] for host in cli("hosts", "--json").json["hosts"]} == {
        "fresh": "agent",
        "dead-0": "agent",
        "dead-1": "agent",
        "agent": "ssh",
        "unasked": "agent",
        "back": "agent",
        "new": "agent",
    }
    assert "  stale: agent dead, host up\n" in cli("status").out
    assert "  stale\n" in cli("status").out
    assert {host["hostname"]: host["diagnosis"] for host in cli("status", "--json").json["hosts"]} == {
        "dead-0": "host dead",
        "dead-1": "host dead",
        "agent": "agent dead, host up",
        "unasked": None,
        "back": None,
        "new": "not probed",
    }


def test_show_says_why(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    host, _ = fleet.add("one", ago=5 * MINUTE)
    assert cli("show", "one", "--json").json["diagnosis"] is None
    diagnose(fleet, host, DiagnosisKind.AGENT_DEAD, ago=5 * MINUTE, text="killed\nand again", has_health=True)
    text = cli("show", "one").out
    assert "\nagent dead, host up  since " in text
    assert "\n  killed\n  and again\n" in text
    assert "\n  checks and values are from SSH, 3" in text
    answer = cli("show", "one", "--json").json
    assert (answer["source"], answer["diagnosis"]["evidence"]) == ("ssh", "killed\nand again")
    with fleet.store.transaction() as tx:
        tx.execute("UPDATE host_seen SET received_at = %s", (fleet.now - 4 * MINUTE,))
    assert cli("show", "one", "--json").json["source"] == "agent"


def test_nothing_is_said_twice(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    check = {CheckKey("ssh"): CheckStatus(State.UNKNOWN, fleet.now, "host dead: no answer")}
    host, _ = fleet.add("polled", ago=5 * MINUTE, agent_version="ssh", checks=check)
    with fleet.store.transaction() as tx:
        save_ssh_host(tx, host, SshSettings(), polled=True)
    assert "stale; ssh UNKNOWN: host dead: no answer\n" in cli("status").out
    diagnose(fleet, host, DiagnosisKind.HOST_DEAD, ago=5 * MINUTE, text="no answer")
    assert "  stale: host dead\n" in cli("status").out


def test_that_nobody_was_asked_counts_where_ssh_is_in_use(
    fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.listen()
    host, _ = fleet.add("one", ago=5 * MINUTE)
    diagnose(fleet, host, DiagnosisKind.NOT_PROBED, ago=5 * MINUTE)
    assert "not probed" not in cli("stale").out.splitlines()[0]
    assert "not probed" not in cli("status").out
    monkeypatch.setenv("FLEETPULSE_SSH_KEYS", "/k")
    assert "(1 not probed)" in cli("stale").out.splitlines()[0]
    assert "stale: not probed" in cli("status").out


def test_an_event_without_an_old_value(fleet: Fleet, cli: Cli) -> None:
    host, _ = fleet.add("one")
    fleet.event(host, "one", Event(fleet.now, EventKind.DIAGNOSED, new="host dead", message="no answer"))
    assert cli("events").out.endswith("  host dead: no answer\n")


def test_a_polled_host_is_known_from_ssh(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    host, _ = fleet.add("polled", ago=1_000, agent_version="ssh")
    other, _ = fleet.add("has-an-agent-now", ago=1_000)
    with fleet.store.transaction() as tx:
        for number in (host, other):
            save_ssh_host(tx, number, SshSettings(), polled=True)
    diagnose(fleet, host, DiagnosisKind.HOST_DEAD, ago=1_000, text="no answer")
    sources = {one["hostname"]: one["source"] for one in cli("hosts", "--json").json["hosts"]}
    assert sources == {"polled": "ssh", "has-an-agent-now": "agent"}
    shown = cli("show", "polled")
    assert "agent         none: polled over SSH" in shown.out
    assert "host dead  since" in shown.out  # it is not silent yet, and could not be asked
    assert cli("show", "polled", "--json").json["source"] == "ssh"
    assert cli("stale").status == 0


# --- status ---


def test_an_empty_fleet(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    ran = cli("status")
    assert (ran.status, ran.out.splitlines()[0]) == (0, "OK: no hosts yet")


def test_the_worst_hosts_come_first(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("ok", ago=4_000)
    fleet.add("warned", checks=failing(State.WARNING, "89 % full", fleet.now - MINUTE))
    fleet.add("strange", checks=failing(State.UNKNOWN, "hung", fleet.now - MINUTE))
    fleet.add("full", checks=failing(State.CRITICAL, "99 % full", fleet.now - 10 * MINUTE))
    fleet.add("gone", ago=5 * MINUTE)
    ran = cli("status")
    assert ran.status == 2
    assert ran.out.startswith("CRITICAL: 5 hosts: 2 critical, 1 unknown, 1 warning, 1 ok (full, gone)\n")
    answer = cli("status", "--json").json
    assert [host["hostname"] for host in answer["hosts"]] == ["full", "gone", "strange", "warned"]
    full = answer["hosts"][0]
    assert full["checks"] == [
        {
            "check": "filesystem",
            "instance": "/home",
            "state": "CRITICAL",
            "since": full["since"],
            "message": "99 % full",
        }
    ]
    assert full["seconds"] == pytest.approx(600, abs=20)
    assert answer["presence"] == {"fresh": 4, "stale": 1, "unknown": 0, "never_seen": 0}
    assert answer["states"] == {"OK": 1, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 1}
    assert answer["report_age_seconds"]["oldest"] == pytest.approx(4, abs=20)
    assert answer["collectors"][0]["listening"] is True
    assert answer["fleet_silent_since"] is None
    limited = cli("status", "--limit", "1")
    assert "(full and 1 more)" in limited.out
    assert "and 3 more hosts not OK" in limited.out
    assert limited.status == 2


@pytest.mark.parametrize("state", list(State))
def test_status_exits_with_the_worst_state(fleet: Fleet, cli: Cli, state: State) -> None:
    fleet.listen()
    fleet.add("one", checks=failing(state, "", 1))
    assert cli("status").status == state.value


def test_status_without_a_collector_is_unknown(fleet: Fleet, cli: Cli) -> None:
    fleet.add("one")
    fleet.listen(heard=20_000, stopped=20_000)
    ran = cli("status")
    assert ran.status == 3
    assert "collector  c1 stopped" in ran.out


def test_status_of_a_group(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("a", groups=("x",), checks=failing(State.CRITICAL, "", 1))
    fleet.add("b", groups=("y",))
    assert cli("status", "--group", "y").status == 0
    assert cli("status", "--group", "x").status == 2
    assert cli("status", "--group", "z").status == 3


def test_a_fleet_that_is_silent_as_a_whole(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("one", ago=5 * MINUTE, silence=Silence.FLEET)
    with fleet.store.transaction() as tx:
        save_fleet_silence(tx, FleetSilence(since=fleet.now - MINUTE))
    assert "fleet      silent as a whole since" in cli("status").out
    assert cli("status", "--json").json["fleet_silent_since"] is not None


# --- hosts ---


def test_hosts_by_name(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    fleet.add("b", checks=failing(State.CRITICAL, "", 1), groups=("g",))
    fleet.add("a", ago=None)
    fleet.add("c", ago=5 * MINUTE, ttl=90_000)
    answer = cli("hosts", "--json").json
    assert [(h["hostname"], h["presence"], h["state"]) for h in answer["hosts"]] == [
        ("a", "never_seen", None),
        ("b", "fresh", "CRITICAL"),
        ("c", "stale", "OK"),
    ]
    assert answer["hosts"][2]["ttl_seconds"] == 90
    assert answer["hosts"][0]["report_age_seconds"] is None
    assert cli("hosts").status == 0

    def names(*arguments: str) -> list[str]:
        return [host["hostname"] for host in cli("hosts", "--json", *arguments).json["hosts"]]

    assert names("--state", "critical", "--state", "ok") == ["b", "c"]
    assert names("--presence", "never_seen") == ["a"]
    assert names("--group", "g") == ["b"]
    assert names("--limit", "2") == ["a", "b"]
    assert "and 1 more host\n" in cli("hosts", "--limit", "2").out
    assert cli("hosts", "--json", "--limit", "1").json["hosts_matching"] == 3
    # Whether it is one of the first is not known before it is looked for.
    assert names("--state", "ok", "--limit", "1") == ["c"]
    assert cli("hosts", "--json", "--group", "g", "--limit", "1").json["hosts_matching"] == 1
    assert names("--presence", "stale", "--limit", "1") == ["c"]


# --- show ---


def test_show_says_all(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    host, identity = fleet.add(
        "web-1",
        ago=3_000,
        skew=-1_500,
        checks=failing(State.WARNING, "89 % full", fleet.now - MINUTE),
        values=(0.25, math.nan, 2.0**30),
        facts={"os.type": "linux"},
        groups=("g",),
    )
    fleet.event(host, "web-1", Event(fleet.now, EventKind.REBOOT, old="x", new="boot"))
    ran = cli("show", "web-1")
    assert ran.status == 0
    for text in (
        "web-1  WARNING  fresh",
        "25 %",
        "1 GiB",
        "-1.500 s against",
        "89 % full",
        "linux",
        "reboot",
        "x -> boot",
    ):
        assert text in ran.out
    answer = cli("show", "web-1", "--json").json
    assert answer["clock_skew_seconds"] == -1.5
    assert [value["value"] for value in answer["values"]] == [0.25, None, 2.0**30]
    assert answer["values"][2] == {
        "check": "filesystem",
        "instance": "/home",
        "measurement": "system.filesystem.limit",
        "unit": "By",
        "value": 2.0**30,
    }
    assert answer["facts"] == {"os.type": "linux"}
    assert answer["groups"] == ["g"]
    assert [check["state"] for check in answer["checks"]] == ["WARNING", "OK"]
    assert answer["events"][0]["host_id"] == identity.host_id
    assert cli("show", "web-1", "--json", "--events", "0").json["events"] == []


def test_show_a_host_that_was_never_seen(fleet: Fleet, cli: Cli) -> None:
    fleet.add("new", ago=None)
    ran = cli("show", "new")
    assert ran.status == 0
    assert "never_seen, no report yet" in ran.out
    assert cli("show", "new", "--json").json["clock_skew_seconds"] is None


def test_show_a_clock_from_another_age(fleet: Fleet, cli: Cli) -> None:
    fleet.add("odd", skew=2**53 - fleet.now)
    assert cli("show", "odd").status == 0
    assert cli("show", "odd", "--json").json["measured_at"] is None


def test_which_host_is_meant(fleet: Fleet, cli: Cli) -> None:
    first = str(uuid.UUID("aaaaaaaa-0000-4000-8000-000000000001"))
    fleet.add("web-1", host_id=first)
    fleet.add("web-10")
    fleet.add("Db_1")
    fleet.add("twin", host_id=str(uuid.UUID("bbbbbbbb-0000-4000-8000-000000000001")))
    fleet.add("twin", host_id=str(uuid.UUID("bbbbbbbb-0000-4000-8000-000000000002")))

    def shown(name: str) -> str:
        ran = cli("show", name, "--json")
        return str(ran.json["hostname"]) if ran.status == 0 else ran.err

    assert shown("web-1") == "web-1"  # exactly, although web-10 starts the same
    assert shown("WEB-1") == "web-1"
    assert shown("web-10") == "web-10"
    assert shown("db") == "Db_1"
    assert shown("db_") == "Db_1"
    assert shown(first) == "web-1"
    assert shown(first.upper()) == "web-1"
    assert shown("aaaa") == "web-1"
    assert "'web' may be any of 2 hosts: web-1 (aaaaaaaa" in shown("web")
    assert "'twin' may be any of 2 hosts" in shown("twin")
    assert shown("bbbbbbbb-0000-4000-8000-000000000002") == "twin"
    for none in ("%", "_eb", "nöne", "x\\", "nul"):
        assert shown(none) == f"collector-cli: no host {none!r}; see: collector-cli hosts\n"
    assert cli("show", "web").status == 3


# --- events ---


def test_events(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    assert cli("events").out == "no events\n"
    one, _ = fleet.add("one")
    two, _ = fleet.add("two")
    for number in range(5):
        fleet.event(
            one, "one", Event(fleet.now - number * MINUTE, EventKind.FACT, f"f{number}", old="a", new="b")
        )
    fleet.event(
        two, "two", Event(fleet.now, EventKind.STATE, "filesystem", "/home", "OK", "CRITICAL", "full", 5)
    )
    fleet.event(None, "", Event(fleet.now + 1, EventKind.FLEET_SILENT, new="40"))
    fleet.event(999, "removed-host", Event(fleet.now - 9 * MINUTE, EventKind.REMOVED, old="removed-host"))

    def found(*arguments: str) -> list[str]:
        events = cli("events", "--json", *arguments).json["events"]
        return [event["subject"] or event["kind"] for event in events]

    assert found() == ["removed", "f4", "f3", "f2", "f1", "f0", "filesystem", "fleet-silent"]
    assert found("--limit", "2") == ["filesystem", "fleet-silent"]
    assert found("--host", "one", "--since", "150s") == ["f2", "f1", "f0"]
    assert found("--kind", "state", "--kind", "removed") == ["removed", "filesystem"]
    assert found("--host", "removed-host") == ["removed"]
    event = cli("events", "--json", "--host", "two").json["events"][0]
    assert event == {
        "at": event["at"],
        "kind": "state",
        "hostname": "two",
        "host_id": event["host_id"],
        "subject": "filesystem",
        "instance": "/home",
        "old": "OK",
        "new": "CRITICAL",
        "message": "full",
        "measured_at": "1970-01-01T00:00:00.005Z",
    }
    assert cli("events", "--json", "--kind", "fleet-silent").json["events"][0]["hostname"] is None
    assert "state         two           filesystem /home  OK -> CRITICAL: full" in cli("events").out
    assert cli("events", "--host", "nobody").status == 3
    assert cli("events", "--kind", "nonsense").status == 3


def test_an_event_of_a_kind_from_the_future(fleet: Fleet, cli: Cli) -> None:
    with fleet.store.transaction() as tx:
        tx.execute(
            "INSERT INTO event (at, host, hostname, kind, subject, instance, old_value, new_value, message, "
            "measured_at) VALUES (1, NULL, 'x', 'quarantined', '', '', '', '', '', 0)"
        )
    assert "quarantined" in cli("events").out


# --- remove ---


def test_remove(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    _, one = fleet.add("one")
    fleet.add("two")
    fleet.add("one-more")
    ran = cli("remove", "one", "two", "ONE", "--yes")
    assert ran.status == 0
    assert ran.out.splitlines()[0] == f"removed one ({one.host_id})"
    assert [host["hostname"] for host in cli("hosts", "--json").json["hosts"]] == ["one-more"]
    events = cli("events", "--json").json["events"]
    assert [(e["kind"], e["hostname"], e["old"]) for e in events] == [
        ("removed", "one", "one"),
        ("removed", "two", "two"),
    ]


def test_remove_all_or_none(fleet: Fleet, cli: Cli) -> None:
    fleet.add("one")
    ran = cli("remove", "--yes", "one", "on")
    assert (ran.status, ran.err) == (3, "collector-cli: no host 'on'; give a whole hostname or UUID\n")
    assert cli("show", "one").status == 0


def test_remove_those_that_there_are(fleet: Fleet, cli: Cli) -> None:
    fleet.add("one")
    ran = cli("remove", "--if-known", "--yes", "one", "two", "on")
    assert (ran.status, ran.out.count("removed")) == (0, 1)
    again = cli("remove", "--if-known", "one", "two")
    assert (again.status, again.out) == (0, "")
    fleet.add("twin")
    fleet.add("twin")
    assert cli("remove", "--if-known", "--yes", "twin").status == 3


def test_text_from_hosts_is_shown_harmless(fleet: Fleet, cli: Cli) -> None:
    fleet.listen()
    evil = "\x1b]0;owned\x07[red]x\r\n"
    checks = failing(State.CRITICAL, evil, 1)
    host, _ = fleet.add(evil, ago=5 * MINUTE, checks=checks, facts={evil: evil}, groups=(evil,), address=evil)
    fleet.event(host, evil, Event(1, EventKind.STATE, evil, evil, evil, evil, evil))
    for arguments in (("stale",), ("status",), ("hosts",), ("show", evil), ("events",), ("stale", "--json")):
        ran = cli(*arguments)
        assert all(shown.isprintable() for shown in ran.out.split("\n")), arguments
        assert "[red]x" in ran.out
