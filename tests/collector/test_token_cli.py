"""collector-cli token, in processes of its own."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.cli.bulk import Wanted, issue
from collector.cli.inventory import InventoryError, parse_inventory
from collector.config import Identity
from collector.identity.tokens import hash_token, is_token
from collector.store.certificates import revoke_host
from collector.store.hosts import add_hosts, find_hosts
from collector.store.records import rename_host
from collector.store.schema import upgrade
from collector.store.store import Store, open_store
from collector.store.tokens import StoredToken, list_tokens
from tests.collector.cli_process import SCRIPT, environment, run_cli
from tests.collector.enrolment_site import EnrolmentSite, application
from tests.collector.fleet import Fleet, record

ANSIBLE = {
    "_meta": {"hostvars": {"web-1": {"x": 1}, "spare": {}}},
    "all": {"children": ["ungrouped", "site"]},
    "site": {"children": ["web", "db"]},
    "web": {"hosts": ["web-1", "web-2"]},
    "db": {"hosts": ["db-1"], "children": ["site"]},
    "ungrouped": {"hosts": ["lone"]},
}


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    store = open_store(sqlite_url, pool_size=4, create=True)
    upgrade(store, lambda: 0)
    yield store
    store.close()


@pytest.fixture
def site(sqlite_store: Store, tmp_path: Path) -> Iterator[EnrolmentSite]:
    with EnrolmentSite(sqlite_store, Identity(dir=tmp_path / "identity")) as site:
        yield site


def tokens(store: Store) -> list[StoredToken]:
    with store.transaction(write=False) as tx:
        return list_tokens(tx)


def run_json(url: str, *arguments: str, **extra: str) -> Any:
    done = run_cli(url, "token", *arguments, "--json", **extra)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def failed(url: str, *arguments: str) -> str:
    done = run_cli(url, "token", *arguments)
    assert done.returncode == 3, done.stdout
    assert not done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


# --- one token ---


def test_a_token_is_printed_once_and_not_stored(store: Store, database_url: str) -> None:
    done = run_cli(database_url, "token", "create")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout.removesuffix("\n")
    assert is_token(text)
    [token] = tokens(store)
    assert token.hash == hash_token(text)
    assert (token.hostname, token.host, token.groups, token.uses) == ("", None, (), 1)
    assert token.expires_at - token.created_at == 3_600_000
    listed = run_cli(database_url, "token", "list")
    assert "1 valid token" in listed.stdout
    assert text not in listed.stdout
    options = ("--host", "web-1", "--group", "a", "--group", "b", "--ttl", "10m", "--uses", "3")
    made = run_json(database_url, "create", *options)
    assert made["token"].startswith("fpt_")
    [_, token] = tokens(store)
    assert (token.hostname, token.groups, token.uses) == ("web-1", ("a", "b"), 3)
    assert token.expires_at - token.created_at == 600_000
    [_, entry] = run_json(database_url, "list")["tokens"]
    assert entry == {key: made[key] for key in entry}
    assert (entry["id"], entry["state"], entry["uses_left"]) == (token.number, "valid", 3)
    revoked = run_cli(database_url, "token", "revoke", str(token.number))
    assert revoked.stdout == "revoked 1 token\n"
    assert len(tokens(store)) == 1
    assert "no token 99" in failed(database_url, "revoke", str(tokens(store)[0].number), "99")
    assert len(tokens(store)) == 1


def test_who_makes_a_token_at_a_terminal_is_told_what_to_do(site: EnrolmentSite, sqlite_url: str) -> None:
    leader, follower = pty.openpty()
    settings = {
        "FLEETPULSE_IDENTITY_DIR": str(site.keyring.places.folder),
        "FLEETPULSE_LISTEN": "0.0.0.0:18443",
        "FLEETPULSE_IDENTITY_ENROLL_LISTEN": "0.0.0.0:4711",
    }
    done = subprocess.run(
        [SCRIPT, "token", "create", "--host", "web-1"],
        env=environment(sqlite_url, **settings),
        stdout=subprocess.PIPE,
        stderr=follower,
        timeout=60,
        check=True,
    )
    os.close(follower)
    said = os.read(leader, 4096).decode()
    os.close(leader)
    text = done.stdout.decode().strip()
    fingerprint = site.keyring.current.server_issuer_fingerprint.hex()
    assert is_token(text)
    assert text not in said
    assert "for web-1" in said
    assert f":18443 --enroll-port 4711 --token-file FILE --ca-fingerprint {fingerprint}\r\n" in said
    assert "with --force if it was enrolled before" in said


def test_what_is_not_known_here_is_left_open(sqlite_store: Store, sqlite_url: str, tmp_path: Path) -> None:
    made = run_json(sqlite_url, "create", FLEETPULSE_IDENTITY_DIR=str(tmp_path / "none"))
    assert made["ca_fingerprint"] is None
    assert made["command"].endswith("--collector 127.0.0.1:18443 --token-file FILE --ca-fingerprint SHA256")
    made = run_json(sqlite_url, "create", FLEETPULSE_TLS="off")
    assert made["collector"] is None
    assert not (tmp_path / "none").exists()


def test_a_token_for_a_known_host_is_bound_to_its_record(sqlite_store: Store, sqlite_url: str) -> None:
    fleet = Fleet(sqlite_store)
    fleet.add("web-1")
    fleet.add("twin")
    fleet.add("twin")
    with sqlite_store.transaction(write=False) as tx:
        [(host, host_id)] = tx.query("SELECT id, host_id FROM host WHERE hostname = 'web-1'")
    made = run_json(sqlite_url, "create", "--host", "WEB-1")
    assert made["known_host"] is True
    # The machine may be enrolled, and would do nothing without.
    assert made["command"].endswith(" --force")
    assert run_json(sqlite_url, "create", "--host", host_id)["hostname"] == "web-1"
    made = run_json(sqlite_url, "create", "--host", "other")
    assert (made["known_host"], "--force" in made["command"]) == (False, False)
    assert [token.host for token in tokens(sqlite_store)] == [host, host, None]
    assert "may be any of 2 hosts" in failed(sqlite_url, "create", "--host", "twin")
    assert "no host" in failed(sqlite_url, "create", "--host", host_id[:-4] + "0000")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ttl", "soon"], "expected a duration"),
        (["--ttl", "0"], "more than 0"),
        (["--ttl", "367d"], "at most 366d"),
        (["--uses", "0"], "--uses"),
        (["--host", ""], "printable characters"),
        (["--host", "a\x1b[31mb"], "printable characters"),
        (["--group", ""], "1 to 255 characters"),
        (["--group", "g" * 256], "1 to 255 characters"),
        (["--again"], "go with --inventory"),
        (["--inventory", "x"], "needs --output"),
        (["--output", "-"], "go with --inventory"),
        (["--inventory", "/none/such", "--output", "-"], "cannot read /none/such"),
        (["--inventory", "x", "--output", "y", "--uses", "2"], "does not go with"),
        (["--inventory", "/none/such", "--output", "y"], "cannot read /none/such"),
    ],
)
def test_bad_input_is_refused(sqlite_store: Store, sqlite_url: str, arguments: list[str], said: str) -> None:
    assert said in failed(sqlite_url, "create", *arguments)
    assert not tokens(sqlite_store)


# --- an inventory ---


def test_an_inventory_gets_its_tokens_once(site: EnrolmentSite, sqlite_url: str, tmp_path: Path) -> None:
    inventory, folder = tmp_path / "machines", tmp_path / "tokens"
    inventory.write_text("web-1  # the first\n\nweb-2\n# none\nweb-3\n")
    bulk = ("create", "--inventory", str(inventory), "--output", str(folder), "--group", "lab")
    first = run_json(sqlite_url, *bulk)
    assert (first["created"], first["kept"], first["enrolled"]) == (["web-1", "web-2", "web-3"], [], [])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {path.name: path for path in folder.iterdir()}
    assert sorted(files) == ["web-1.token", "web-2.token", "web-3.token"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    assert {token.expires_at - token.created_at for token in tokens(site.store)} == {86_400_000}

    # Each is for its own machine, and enrolls it.
    request = application(files["web-1.token"].read_text().strip(), hostname="web-1")
    site.enroll(request)
    with site.store.transaction(write=False) as tx:
        assert find_hosts(tx, [request.host_id])[request.host_id].assigned == ("lab",)
    files["web-2.token"].unlink()
    before = files["web-3.token"].read_text()
    second = run_json(sqlite_url, *bulk)
    assert (second["created"], second["kept"], second["enrolled"]) == (["web-2"], ["web-3"], ["web-1"])
    assert not files["web-1.token"].exists(), "it is spent"
    assert files["web-3.token"].read_text() == before
    third = run_cli(sqlite_url, "token", *bulk)
    assert "OK: 0 tokens made, 2 still good, 1 host enrolled already" in third.stdout
    assert len(tokens(site.store)) == 4

    # A host whose certificate is revoked needs a new one, for its own record; --again means everybody.
    with site.store.transaction(write=False) as tx:
        host = find_hosts(tx, [request.host_id])[request.host_id].host
    with site.store.transaction() as tx:
        revoke_host(tx, host, 1)
    assert run_json(sqlite_url, *bulk)["created"] == ["web-1"]
    assert tokens(site.store)[-1].host == host
    again = application(files["web-1.token"].read_text().strip(), hostname="web-1", host_id=request.host_id)
    site.enroll(again)
    assert run_json(sqlite_url, *bulk)["enrolled"] == ["web-1"]
    assert run_json(sqlite_url, *bulk, "--again")["created"] == ["web-1", "web-2", "web-3"]
    assert run_json(sqlite_url, *bulk)["enrolled"] == ["web-1"]
    assert files["web-1.token"].exists(), "it was not used yet"
    assert files["web-3.token"].read_text() != before
    assert hash_token(before.strip()) not in {token.hash for token in tokens(site.store)}


def test_a_program_gets_the_tokens_of_an_inventory(
    site: EnrolmentSite, sqlite_url: str, tmp_path: Path
) -> None:
    inventory = tmp_path / "machines"
    inventory.write_text("web-1\nweb-2\n")
    settings = {
        "FLEETPULSE_IDENTITY_DIR": str(site.keyring.places.folder),
        "FLEETPULSE_LISTEN": "192.0.2.1:18443",
    }
    before = {path for path in tmp_path.rglob("*") if path.name.partition("-")[0] != "fleet.db"}

    def printed(*more: str, **changed: str) -> Any:
        options = ("--inventory", str(inventory), "--output", "-", *more)
        done = run_cli(sqlite_url, "token", "create", *options, cwd=tmp_path, **settings | changed)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        return json.loads(done.stdout)

    first = printed("--group", "lab", "--ttl", "10m")
    assert list(first) == ["tokens", "enrolled", "collector", "enroll_port", "ca_fingerprint"]
    assert list(first["tokens"]) == ["web-1", "web-2"]
    assert (first["enrolled"], first["collector"], first["enroll_port"]) == ([], "192.0.2.1:18443", None)
    assert first["ca_fingerprint"] == site.keyring.current.server_issuer_fingerprint.hex()
    made = {token.hash: token for token in tokens(site.store)}
    assert {(made[hash_token(text)].hostname, name) for name, text in first["tokens"].items()} == {
        ("web-1", "web-1"),
        ("web-2", "web-2"),
    }
    assert {(one.groups, one.uses, one.expires_at - one.created_at) for one in made.values()} == {
        (("lab",), 1, 600_000)
    }
    site.enroll(application(first["tokens"]["web-1"], hostname="web-1"))

    second = printed("--json", FLEETPULSE_IDENTITY_ENROLL_LISTEN="192.0.2.1:4711")
    assert (list(second["tokens"]), second["enrolled"]) == (["web-2"], ["web-1"])
    assert second["enroll_port"] == 4711
    assert second["tokens"]["web-2"] != first["tokens"]["web-2"]
    third = printed("--again", FLEETPULSE_TLS="off", FLEETPULSE_LISTEN="127.0.0.1:18443")
    assert (list(third["tokens"]), third["enrolled"]) == (["web-1", "web-2"], [])
    assert (third["collector"], third["ca_fingerprint"]) == (None, None)
    after = {path for path in tmp_path.rglob("*") if path.name.partition("-")[0] != "fleet.db"}
    assert after == before, "nothing was written"


def test_a_thousand_tokens_take_no_time(sqlite_store: Store) -> None:
    fleet = Fleet(sqlite_store)
    machines = {f"host-{number:04}": ("lab",) for number in range(1_000)}
    with sqlite_store.transaction() as tx:
        add_hosts(tx, [record(name) for name in list(machines)[:500]], fleet.now)
    began = time.process_time()
    issued = issue(sqlite_store, Wanted(machines, ("more",), 60_000, again=False))
    assert time.process_time() - began < 1  # second; it takes a hundredth
    assert list(issued.created) == list(machines)
    assert sum(token.host is not None for token in tokens(sqlite_store)) == 500


def test_one_host_under_two_names_gets_no_two_tokens(
    sqlite_store: Store, sqlite_url: str, tmp_path: Path
) -> None:
    there = record("vm-3")
    with sqlite_store.transaction() as tx:
        add_hosts(tx, [there], 1)
        rename_host(tx, find_hosts(tx, [there.host_id])[there.host_id].host, "web-1", 1)
    inventory, folder = tmp_path / "machines", tmp_path / "tokens"
    bulk = ("create", "--inventory", str(inventory), "--output", str(folder))
    inventory.write_text("web-1\nweb-2\nvm-3\n")
    said = failed(sqlite_url, *bulk)
    assert f"web-1 and vm-3 are one host here: web-1 ({there.host_id})" in said
    assert "calls itself vm-3; leave one of them out" in said
    assert not tokens(sqlite_store)
    assert not list(folder.iterdir())
    inventory.write_text("web-2\nvm-3\n")
    assert run_json(sqlite_url, *bulk)["created"] == ["web-2", "vm-3"]


def test_what_is_in_the_way_is_told(sqlite_store: Store, sqlite_url: str, tmp_path: Path) -> None:
    inventory, folder = tmp_path / "machines", tmp_path / "tokens"
    bulk = ("create", "--inventory", str(inventory), "--output", str(folder))
    folder.mkdir(0o755)
    inventory.write_text("web-1\n")
    assert f"run: chmod 700 {folder}" in failed(sqlite_url, *bulk)
    folder.chmod(0o700)
    inventory.write_bytes(b"web-\xff\n")
    assert "is not UTF-8" in failed(sqlite_url, *bulk)
    inventory.write_text("web-1\n../web-2\n")
    assert "cannot be a machine's name" in failed(sqlite_url, *bulk)
    assert not tokens(sqlite_store)
    assert not list(folder.iterdir())
    (folder / "web-1.token").write_text("no token\n")  # not ours, so in nobody's way
    inventory.write_text("web-1\n")
    assert run_json(sqlite_url, *bulk)["created"] == ["web-1"]
    assert is_token((folder / "web-1.token").read_text().strip())


def test_the_inventory_may_come_from_a_pipe(sqlite_store: Store, sqlite_url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, "token", "create", "--inventory", "-", "--output", str(tmp_path / "tokens"), "--json"],
        env=environment(sqlite_url),
        input=json.dumps(ANSIBLE),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert sorted(json.loads(done.stdout)["created"]) == ["db-1", "lone", "spare", "web-1", "web-2"]
    assert {token.hostname: token.groups for token in tokens(sqlite_store)}["db-1"] == ("db", "site")


def test_inventories() -> None:
    assert parse_inventory("a\n b # c\n\n#d\n") == {"a": (), "b": ()}
    assert parse_inventory(json.dumps(ANSIBLE)) == {
        "web-1": ("db", "site", "web"),
        "web-2": ("db", "site", "web"),
        "db-1": ("db", "site"),
        "lone": (),
        "spare": (),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no machine"),
        ("# nobody\n", "names no machine"),
        ("{}", "names no machine"),
        ("web-1 web-2", "line 1: one name a line"),
        ("{nonsense", "is no JSON"),
        ('{"web": []}', "group web is no object"),
        ('{"web": {"hosts": {"a": {}}}}', "group web: hosts is no list"),
        ('{"_meta": {"hostvars": []}}', "hostvars is no object"),
        ("web\\1/x", "cannot be a machine's name"),
        ("..", "cannot be a machine's name"),
        (".hidden", "cannot be the name of a token's file"),
        ("n" * 201, "cannot be the name of a token's file"),
        ("a\x1b[31m", "cannot be a machine's name"),
        ("Web-1\nweb-1\n", "Web-1 and web-1 would be the same machine"),
        (json.dumps({"g" * 256: {"hosts": ["a"]}}), "a group's name has 1 to 255 characters"),
        (json.dumps({f"g{n}": {"hosts": ["a"]} for n in range(65)}), "a is in 65 groups"),
    ],
)
def test_inventories_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(InventoryError, match=said.replace("(", r"\(")):
        parse_inventory(text)
