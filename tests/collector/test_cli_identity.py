"""Conflicts, certificates, and the commands that say who is who, on both kinds of database."""

from __future__ import annotations

import re

import pytest

from collector.core.status import Event, EventKind
from collector.store.certificates import CertificateRow, add_certificate, load_certificates
from collector.store.conflicts import ConflictRow, save_conflict
from collector.store.records import rename_host
from collector.store.store import Store
from fleetpulse.model import State
from tests.collector.cli_inside import Cli
from tests.collector.fleet import MINUTE, Fleet, failing

DAY = 86_400_000
HOSTILE = "\x1b]0;owned\x07\x9b31m[red]x\u202e\r\n"


@pytest.fixture
def fleet(store: Store) -> Fleet:
    made = Fleet(store)
    made.listen()
    return made


def certify(fleet: Fleet, host: int, number: int, *, age: int = DAY, lifetime: int = 90 * DAY) -> None:
    issued_at = fleet.now - age
    row = CertificateRow(bytes([number]) * 32, host, b"\xca" * 32, issued_at, issued_at + lifetime)
    with fleet.store.transaction() as tx:
        add_certificate(tx, row)


def double(fleet: Fleet, host: int, **changes: object) -> None:
    """Another machine that said Hello as `host`, four minutes ago and again five seconds ago."""
    fields: dict[str, object] = {
        "place": b"p" * 16,
        "hostname": "clone",
        "address": "192.0.2.99",
        "machine_id": "another machine",
        "hardware_id": "",
        "boot_id": "another boot",
        "instance": "i",
    }
    times = (fleet.now - 4 * MINUTE, fleet.now - 5_000)
    with fleet.store.transaction() as tx:
        save_conflict(tx, ConflictRow(host, *{**fields, **changes}.values(), *times))  # type: ignore[arg-type]


# --- conflicts ---


def test_a_conflict_is_shown_with_both_machines(fleet: Fleet, cli: Cli) -> None:
    host, identity = fleet.add("web-17", groups=("lab-3",), machine_id="m" * 32)
    fleet.add("web-18", groups=("lab-4",))
    assert cli("status").status == cli("stale").status == 0
    double(fleet, host)
    for command in ("status", "stale"):
        ran = cli(command)
        assert ran.status == 1
        assert ran.out.startswith("WARNING: ")
        assert ran.out.splitlines()[0].endswith("; 1 in conflict: web-17")
        assert "1 host in conflict: another machine has the same identity" in ran.out
        assert "fleet-agent enroll --new-identity" in ran.out
        accepted, refused = (line for line in ran.out.splitlines() if line.startswith("web-17  "))
        assert accepted.split()[:5] == ["web-17", "accepted", "192.0.2.7", "machine", "m" * 12]
        assert re.split("  +", refused)[:4] == ["web-17", "refused", "192.0.2.99", "machine another mach"]
        assert refused.endswith(" ago")
        assert cli(command, "--group", "lab-4").status == 0
        assert cli(command, "--group", "lab-3").status == 1
        [conflict] = cli(command, "--json").json["conflicts"]
        assert conflict["host_id"] == identity.host_id
        assert conflict["accepted"]["address"] == "192.0.2.7"
        assert conflict["accepted"]["machine_id"] == "m" * 32
        [other] = conflict["refused"]
        assert (other["hostname"], other["address"], other["machine_id"]) == (
            "clone",
            "192.0.2.99",
            "another machine",
        )
        assert conflict["since"] == other["since"] < other["last_tried_at"]
    shown = cli("show", "web-17")
    assert shown.status == 0
    assert "192.0.2.99" in shown.out
    assert cli("show", "web-17", "--json").json["conflict"] == conflict
    assert cli("show", "web-18", "--json").json["conflict"] is None


def test_a_conflict_is_a_warning_beside_what_is_worse(fleet: Fleet, cli: Cli) -> None:
    host, _ = fleet.add("web-17", ago=5 * MINUTE)
    double(fleet, host)
    assert cli("stale").status == 2
    assert cli("stale").out.startswith("CRITICAL: 1 of 1 host silent: web-17; 1 in conflict: web-17\n")
    fleet.listen(heard=5 * MINUTE)
    assert cli("stale").status == 3


@pytest.mark.parametrize(
    ("known", "newcomer", "shown"),
    [
        ({"hardware_id": "one"}, {"hardware_id": "two"}, ("hardware one", "hardware two")),
        ({"hardware_id": "one"}, {"hardware_id": "one"}, ("machine machine", "machine another mach")),
        ({"machine_id": "m"}, {"machine_id": "m"}, ("boot boot", "boot another boot")),
        (
            {"machine_id": "m", "boot_id": "b"},
            {"machine_id": "m", "boot_id": "b"},
            ("address 192.0.2.7", "address 192.0.2.99"),
        ),
        (
            {"machine_id": "m", "boot_id": "b", "instance": "first run"},
            {"machine_id": "m", "boot_id": "b", "address": "192.0.2.7", "instance": "another run"},
            ("instance first run", "instance another run"),
        ),
        ({"machine_id": "", "boot_id": ""}, {}, ("address 192.0.2.7", "address 192.0.2.99")),
        ({"machine_id": "", "boot_id": ""}, {"address": ""}, ("-", "-")),
    ],
)
def test_the_fingerprints_are_those_that_differ(
    fleet: Fleet, cli: Cli, known: dict[str, str], newcomer: dict[str, str], shown: tuple[str, str]
) -> None:
    host, _ = fleet.add("web-17", **known)
    double(fleet, host, **newcomer)
    rows = [line for line in cli("stale").out.splitlines() if line.startswith("web-17")]
    for row, fingerprint in zip(rows, shown, strict=True):
        assert f"  {fingerprint}  " in row or fingerprint == "-"


def test_many_doubles_of_one_host_are_counted(fleet: Fleet, cli: Cli) -> None:
    host, _ = fleet.add("image")
    for number in range(20):
        double(fleet, host, place=bytes([number]) * 16, address=f"10.0.0.{number}")
    out = cli("stale").out
    assert out.count("refused  ") == 5
    assert "image  and 15 more  " in out
    assert len(cli("stale", "--json").json["conflicts"][0]["refused"]) == 20


def test_hosts_marks_conflicts(fleet: Fleet, cli: Cli) -> None:
    host, _ = fleet.add("web-17")
    fleet.add("web-18")
    double(fleet, host)
    assert "web-17  fresh,conflict  OK" in cli("hosts").out
    assert [h["in_conflict"] for h in cli("hosts", "--json").json["hosts"]] == [True, False]
    only = cli("hosts", "--conflict", "--json").json
    assert [h["hostname"] for h in only["hosts"]] == ["web-17"]
    assert only["hosts_matching"] == 1


# --- certificates ---


def test_certificates_are_shown(fleet: Fleet, cli: Cli) -> None:
    host, _ = fleet.add("web-17", hardware_id="hw")
    fleet.add("plain")
    certify(fleet, host, 1, age=30 * DAY)
    certify(fleet, host, 2, age=DAY)
    out = cli("show", "web-17").out
    lines = out.splitlines()
    newest, oldest = (number for number, text in enumerate(lines) if text.startswith("  certificate"))
    assert lines[newest].endswith("  0202020202020202 of CA cacacacacacacaca")
    assert lines[newest + 1].startswith("                issued 20")
    assert lines[newest + 1].endswith(("(in 88d 23h)", "(in 89d 0h)"))
    assert "0101010101010101" in lines[oldest]
    assert oldest > newest
    assert "none: not enrolled" in cli("show", "plain").out
    rows = cli("show", "web-17", "--json").json["certificates"]
    assert [(row["fingerprint"], row["valid"], row["revoked_at"]) for row in rows] == [
        ("02" * 32, True, None),
        ("01" * 32, True, None),
    ]
    plain, web = cli("hosts", "--json").json["hosts"]
    assert (plain["certificate_expires_at"], plain["certificate_issuer"]) == (None, None)
    assert (web["certificate_expires_at"], web["certificate_issuer"]) == (rows[0]["expires_at"], "ca" * 32)
    certify(fleet, host, 3, age=0, lifetime=-1)
    assert "EXPIRED" in cli("show", "web-17").out


def test_revoke(fleet: Fleet, cli: Cli) -> None:
    host, identity = fleet.add("web-17")
    other, _ = fleet.add("web-18")
    fleet.add("plain")
    for number, owner in enumerate((host, host, other)):
        certify(fleet, owner, number)
    ran = cli("revoke", "web-17", "plain", "WEB-17", "--yes")
    assert (ran.status, ran.err) == (0, "")
    revoked, none, hint = ran.out.splitlines()
    assert revoked == f"revoked 2 certificates of web-17 ({identity.host_id})"
    assert none.startswith("plain (")
    assert none.endswith("has no certificate that is not revoked")
    assert "within seconds" in hint
    assert "collector-cli token create --host HOST, and on it fleet-agent enroll --force" in hint
    assert "REVOKED" in cli("show", "web-17").out
    assert [h["certificate_issuer"] is None for h in cli("hosts", "--json").json["hosts"]] == [
        True,
        True,
        False,
    ]
    assert [e["hostname"] for e in cli("events", "--kind", "revoked", "--json").json["events"]] == ["web-17"]
    again = cli("revoke", "--yes", "web-17")
    assert again.status == 0
    assert "within seconds" not in again.out
    ran = cli("revoke", "--yes", "web-18", "nobody")
    assert ran.status == 3
    with fleet.store.transaction() as tx:
        assert load_certificates(tx, [other])[other][0].revoked_at is None


# --- rename ---


def test_rename(fleet: Fleet, cli: Cli) -> None:
    _, identity = fleet.add("localhost")
    ran = cli("rename", "localhost", "kiosk-3")
    assert (ran.status, ran.out) == (0, f"renamed localhost to kiosk-3 ({identity.host_id})\n")
    assert "  calls itself  localhost\n" in cli("show", "kiosk-3").out
    assert cli("show", "kiosk-3", "--json").json["own_name"] == "localhost"
    assert cli("rename", "localhost", "x").status == 3
    ran = cli("rename", "kiosk-3", "kiosk-3")
    assert (ran.status, ran.out) == (0, f"kiosk-3 ({identity.host_id}) is called so already\n")
    assert cli("rename", identity.host_id, "Kiosk-3").status == 0  # the same host, other letters
    assert cli("rename", "Kiosk-3", "localhost").status == 0
    assert "calls itself" not in cli("show", "localhost").out
    assert len(cli("events", "--kind", "renamed", "--json").json["events"]) == 3


def test_a_name_that_is_taken_is_refused(fleet: Fleet, cli: Cli) -> None:
    _, other = fleet.add("web-17")
    fleet.add("localhost")
    for name in ("web-17", "WEB-17", other.host_id):
        ran = cli("rename", "localhost", name)
        assert (ran.status, ran.err) == (
            3,
            (
                f"collector-cli: another host is called {name!r}: web-17 ({other.host_id}, 192.0.2.7); "
                "add --force if that is meant\n"
            ),
        )
    assert cli("rename", "--force", "localhost", "web-17").status == 0
    assert cli("show", "web-17").status == 3


@pytest.mark.parametrize("name", ["", "  ", " x", "x\n", "\x1b[31m", "\u202ex", "x" * 256])
def test_a_name_that_cannot_be_shown_is_refused(fleet: Fleet, cli: Cli, name: str) -> None:
    fleet.add("localhost")
    ran = cli("rename", "localhost", name)
    assert ran.status == 3
    assert ran.err.startswith("collector-cli: the new name ")
    assert cli("show", "localhost").status == 0


@pytest.mark.parametrize("command", [["revoke"], ["remove"], ["rename"], ["rebind"]])
def test_hosts_that_may_be_meant_are_listed_by_their_uuids(
    fleet: Fleet, cli: Cli, command: list[str]
) -> None:
    identities = [fleet.add("twin")[1].host_id for _ in range(12)]
    arguments = {"rename": ["twin", "other"], "rebind": ["twin", "twin", "--yes"]}
    ran = cli(*command, *arguments.get(command[0], ["twin", "--yes"]))
    assert (ran.status, ran.out) == (3, "")
    assert "'twin' may be any of 12 hosts: " in ran.err
    assert sum(f"twin ({identity})" in ran.err for identity in identities) == 10
    assert ran.err.endswith(" and 2 more\n")


# --- rebind ---


def test_rebind(fleet: Fleet, cli: Cli) -> None:
    _, old = fleet.add("web-17", ago=5 * DAY, checks=failing(State.CRITICAL, "full", 1))
    _, new = fleet.add("localhost")
    ran = cli("rebind", "web-17", "localhost", "--yes")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"web-17 is now the machine {new.host_id}; its old identity {old.host_id} is gone\n"
    [host] = cli("hosts", "--json").json["hosts"]
    assert (host["hostname"], host["host_id"], host["presence"]) == ("web-17", new.host_id, "fresh")
    shown = cli("show", "web-17")
    assert "full" in shown.out
    assert f"{old.host_id} -> {new.host_id}: the machine known as localhost until now" in shown.out


def test_machines_of_one_name_are_told_apart_by_who_is_silent(fleet: Fleet, cli: Cli) -> None:
    fleet.add("web-17", ago=5 * DAY)
    _, new = fleet.add("web-17")
    assert cli("rebind", "web-17", "web-17", "--yes").status == 0
    assert cli("show", "web-17", "--json").json["host_id"] == new.host_id
    fleet.add("web-17", ago=3 * DAY)
    fleet.add("web-17", ago=4 * DAY)
    ran = cli("rebind", "web-17", "web-17", "--yes")
    assert ran.status == 3
    assert "'web-17' may be any of 3 hosts" in ran.err


def test_what_cannot_be_rebound(fleet: Fleet, cli: Cli) -> None:
    _, old = fleet.add("web-17", ago=20_000)
    _, new = fleet.add("localhost", ago=5 * DAY)
    ran = cli("rebind", "web-17", "localhost", "--yes")
    assert ran.status == 3
    assert ran.err.startswith(f"collector-cli: web-17 ({old.host_id}, 192.0.2.7) is alive, heard ")
    assert "the right way round?" in ran.err
    assert "add --force" in ran.err
    assert "are the same host" in cli("rebind", "web-17", old.host_id, "--yes").err
    assert "no host 'web'" in cli("rebind", "web", "localhost", "--yes").err
    assert len(cli("hosts", "--json").json["hosts"]) == 2
    assert cli("rebind", "web-17", "localhost", "--yes", "--force").status == 0
    assert [h["host_id"] for h in cli("hosts", "--json").json["hosts"]] == [new.host_id]


# --- text from hosts ---


def test_nothing_of_a_machine_reaches_a_terminal(fleet: Fleet, cli: Cli) -> None:
    host, _ = fleet.add(
        HOSTILE,
        ago=5 * MINUTE,
        checks=failing(State.CRITICAL, HOSTILE, 1),
        facts={HOSTILE: HOSTILE},
        groups=(HOSTILE,),
        address=HOSTILE,
        agent_version=HOSTILE,
        machine_id=HOSTILE,
        hardware_id=HOSTILE,
        boot_id=HOSTILE,
    )
    double(
        fleet,
        host,
        hostname=HOSTILE,
        address=HOSTILE,
        machine_id="x",
        hardware_id=f"{HOSTILE}2",
        boot_id=HOSTILE,
    )
    fleet.event(
        host, HOSTILE, Event(fleet.now, EventKind.CONFLICT, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    )
    fleet.event(None, HOSTILE, Event(fleet.now, EventKind.ENROLMENT_REFUSED, message=HOSTILE))
    fleet.add("other")
    with fleet.store.transaction() as tx:
        rename_host(tx, host, f"{HOSTILE}!", fleet.now)
    name = f"{HOSTILE}!"
    for arguments in (
        ("stale",),
        ("status",),
        ("hosts",),
        ("show", name),
        ("events",),
        ("show", HOSTILE + "?"),
        ("show", "other", HOSTILE),
        ("stale", f"--{HOSTILE}"),
        ("stale", "--group", HOSTILE + "?"),
        ("events", "--kind", HOSTILE),
        ("events", "--host", HOSTILE + "?"),
        ("rename", "other", name),
        ("rename", name, HOSTILE),
        ("rebind", name, name),
        ("rebind", name, "other", "--yes", "--force"),
        ("revoke", name, "--yes"),
        ("remove", name, "--yes"),
        (HOSTILE,),
    ):
        ran = cli(*arguments)
        for text in (ran.out, ran.err):
            assert all(line.isprintable() for line in text.replace("\t", " ").split("\n")), arguments


# --- many hosts ---


def test_certificates_of_more_hosts_than_are_looked_up_one_by_one(fleet: Fleet, cli: Cli) -> None:
    many = range(1, 2_102)
    with fleet.store.transaction() as tx:
        tx.execute_many(
            "INSERT INTO host (id, host_id, hostname, machine_id, boot_id, agent_version, address, interval_ms, "
            "ttl_ms, added_at) VALUES (%s, %s, %s, '', '', '', '', 15000, 60000, 1)",
            [(n, f"{n:036}", f"h-{n:05}") for n in many],
        )
        tx.execute_many(
            "INSERT INTO host_seen (host, received_at) VALUES (%s, %s)", [(n, fleet.now) for n in many]
        )
        for n in many[1:]:
            add_certificate(tx, CertificateRow(n.to_bytes(32, "big"), n, b"c" * 32, 1, 2**44))
    found = cli("hosts", "--json").json["hosts"]
    assert [host["certificate_expires_at"] is not None for host in found] == [n != 1 for n in many]
