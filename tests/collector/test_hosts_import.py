"""hosts import: the hosts that there should be, on both kinds of database."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collector.cli import hosts_expected, hosts_plan
from collector.cli.session import CliError
from collector.core.ssh_settings import SshSettings
from collector.core.status import HostRecord
from collector.store import hosts, schema
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.labels import load_labels, save_labels
from collector.store.ssh_hosts import load_version, save_ssh_host
from collector.store.store import Store, Transaction, open_store
from tests.collector.cli_inside import Cli
from tests.collector.fleet import MINUTE, Fleet, record

INVENTORY: dict[str, Any] = {
    "_meta": {
        "hostvars": {
            "web-1": {"fleetpulse_labels": {"site": "berlin", "rack": 12}},
            "web-2": {"fleetpulse_labels": {"site": "oslo", "canary": True}},
        }
    },
    "all": {"children": ["web", "ungrouped"]},
    "web": {"hosts": ["web-1", "web-2"]},
    "ungrouped": {"hosts": ["lone"]},
}


@pytest.fixture
def fleet(store: Store) -> Fleet:
    fleet = Fleet(store)
    fleet.listen()
    return fleet


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps(INVENTORY))
    return path


def write(path: Path, machines: Mapping[str, tuple[Sequence[str], Mapping[str, object]]]) -> str:
    """An inventory of machines with their groups and labels."""
    names = sorted({group for groups, _ in machines.values() for group in groups})
    groups = {group: {"hosts": [name for name in machines if group in machines[name][0]]} for group in names}
    variables = {name: {"fleetpulse_labels": labels} for name, (_, labels) in machines.items()}
    path.write_text(json.dumps({"_meta": {"hostvars": variables}, **groups}))
    return str(path)


def stored(cli: Cli) -> dict[str, tuple[list[str], dict[str, str]]]:
    """The groups and labels of every host."""
    return {
        host["hostname"]: (host["groups"], host["labels"]) for host in cli("hosts", "--json").json["hosts"]
    }


def events(cli: Cli) -> list[str]:
    return [f"{event['kind']} {event['hostname']}" for event in cli("events", "--json").json["events"]]


def version(fleet: Fleet) -> str:
    with fleet.store.transaction(write=False) as tx:
        return load_version(tx)


def find(tx: Transaction, of: HostRecord) -> hosts.StoredHost:
    return hosts.find_hosts(tx, [of.host_id])[of.host_id]


def test_an_inventory_becomes_hosts_once(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    dry = cli("hosts", "import", str(inventory), "--dry-run")
    assert dry.out.startswith("OK: would be: 3 created, 0 changed, 0 unchanged\n")
    assert stored(cli) == {}
    assert version(fleet) == "", "nothing was written"
    ran = cli("hosts", "import", str(inventory))
    assert (ran.status, ran.err) == (0, "")
    assert version(fleet), "who polls reads the groups anew"
    assert ran.out == (
        "OK: 3 created, 0 changed, 0 unchanged\n"
        "HOST   WHAT     CHANGES\n"
        "lone   created  -\n"
        "web-1  created  joins web, label rack=12, label site=berlin\n"
        "web-2  created  joins web, label canary=true, label site=oslo\n"
    )
    assert stored(cli) == {
        "lone": ([], {}),
        "web-1": (["web"], {"rack": "12", "site": "berlin"}),
        "web-2": (["web"], {"canary": "true", "site": "oslo"}),
    }
    assert sorted(events(cli)) == ["added lone", "added web-1", "added web-2"]
    before = version(fleet)
    again = cli("hosts", "import", str(inventory), "--json")
    assert again.json == {
        "dry_run": False,
        "created": [],
        "changed": [],
        "unchanged": ["lone", "web-1", "web-2"],
        "removed": [],
        "kept": [],
    }
    assert version(fleet) == before, "nothing was written"


def test_an_imported_host_is_expected_until_it_reports(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    cli("hosts", "import", str(inventory))
    ran = cli("stale", "--label", "site=berlin", "--json")
    assert ran.status == 1
    [host] = ran.json["hosts"]
    assert (host["hostname"], host["presence"], host["ttl_seconds"]) == ("web-1", "never_seen", 45)
    assert (host["address"], host["groups"]) == ("", ["web"])
    assert host["labels"] == {"rack": "12", "site": "berlin"}
    shown = cli("show", "web-1", "--json").json
    assert (shown["interval_seconds"], shown["machine_id"], shown["agent_version"]) == (15, "", "")


def test_only_what_differs_is_changed(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    cli("hosts", "import", write(path, {"a": (["g", "h"], {"x": "1", "y": "2"}), "b": (["g"], {"x": "1"})}))
    changed = write(path, {"a": (["h", "k"], {"x": "9", "z": "3"}), "b": (["g"], {"x": "1"}), "c": ([], {})})
    expected = "a     changed    joins k, leaves g, label x 1 -> 9, label z=3, label y 2 -> -\n"
    assert expected in cli("hosts", "import", changed, "--dry-run").out
    assert stored(cli)["a"] == (["g", "h"], {"x": "1", "y": "2"})
    ran = cli("hosts", "import", changed)
    assert ran.out.startswith("OK: 1 created, 1 changed, 1 unchanged\n")
    assert expected in ran.out
    assert stored(cli) == {"a": (["h", "k"], {"x": "9", "z": "3"}), "b": (["g"], {"x": "1"}), "c": ([], {})}
    assert cli("hosts", "import", changed).out.startswith("OK: 0 created, 0 changed, 3 unchanged\n")


def test_known_hosts_are_found_as_everywhere(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    """By the name, the UUID, and what the machine calls itself, in any case of letters."""
    fleet.add("Web-1")
    _, second = fleet.add("web-2")
    fleet.add("localhost")
    cli("rename", "localhost", "web-3")
    wanted = {"web-1": (["g"], {}), second.host_id: (["g"], {}), "LOCALHOST": (["g"], {})}
    ran = cli("hosts", "import", write(tmp_path / "i.json", wanted))
    assert ran.out.startswith("OK: 0 created, 3 changed, 0 unchanged\n")
    assert stored(cli) == {name: (["g"], {}) for name in ("Web-1", "web-2", "web-3")}


def test_groups_that_the_agent_names_stay(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    """Whether it named them before they were assigned, afterwards, or alone."""
    path = tmp_path / "i.json"
    _, first = fleet.add("a", groups=("before", "own"))
    with fleet.store.transaction() as tx:
        hosts.assign_groups(tx, find(tx, first).host, ["token"])
    ran = cli("hosts", "import", write(path, {"a": (["after", "before"], {})}))
    assert "joins after, is in before whatever its agent says, leaves token\n" in ran.out
    assert stored(cli)["a"] == (["after", "before", "own"], {})
    said = replace(first, groups=("after", "before", "own"))
    with fleet.store.transaction() as tx:
        known = hosts.update_host(tx, find(tx, first), said)
        assert known == find(tx, first)
        assert known.named == ("after", "before")
        assert hosts.update_host(tx, known, said) is known, "nothing to write"
    ran = cli("hosts", "import", write(path, {"a": ([], {"x": "y"})}))
    assert "is in after only as long as its agent says so" in ran.out
    assert stored(cli)["a"] == (["after", "before", "own"], {"x": "y"})
    assert cli("hosts", "import", str(path)).out.startswith("OK: 0 created, 0 changed, 1 unchanged")
    with fleet.store.transaction() as tx:
        assert find(tx, first).assigned == ()
        hosts.update_host(tx, find(tx, first), replace(first, groups=("own",)))
    assert stored(cli)["a"] == (["own"], {"x": "y"})


def test_a_group_that_the_agent_names_no_more_is_left(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    _, first = fleet.add("a", groups=("g",))
    cli("hosts", "import", write(path, {"a": (["g"], {})}))
    with fleet.store.transaction() as tx:
        hosts.update_host(tx, find(tx, first), replace(first, groups=()))
    assert stored(cli)["a"] == (["g"], {})
    assert "leaves g, label x=y\n" in cli("hosts", "import", write(path, {"a": ([], {"x": "y"})})).out
    assert stored(cli)["a"] == ([], {"x": "y"})


def test_a_group_that_a_hello_took_away_at_that_moment_comes_back(
    fleet: Fleet, cli: Cli, inventory: Path
) -> None:
    """A Hello writes the groups that it has read."""
    cli("hosts", "import", str(inventory))
    with fleet.store.transaction() as tx:
        tx.execute("DELETE FROM host_group")
    assert "web-1  changed    joins web\n" in cli("hosts", "import", str(inventory)).out
    assert stored(cli)["web-1"][0] == ["web"]


def test_all_of_them_or_none(fleet: Fleet, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "i.json"
    ran = cli(
        "hosts", "import", write(path, {"a": ([], {}), "b": ([], {"x": "{{ y }}"}), "c": ([], {"": 1})})
    )
    assert (ran.status, ran.out) == (3, "")
    assert ran.err.startswith(
        "collector-cli: nothing was changed, because of 2 machines: b: label x is a template"
    )
    fleet.add("twin")
    fleet.add("twin")
    ran = cli("hosts", "import", write(path, {"a": ([], {}), "twin": (["g"], {})}))
    assert (ran.status, "'twin' may be any of 2 hosts" in ran.err) == (3, True)
    lost = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
    assert f"no host {lost}" in cli("hosts", "import", write(path, {lost: (["g"], {})})).err
    path.write_text("web-1\n")
    assert "is not the JSON of ansible-inventory --list" in cli("hosts", "import", str(path)).err

    def fail(*_: object) -> None:
        raise hosts_expected.Refused("cut off")

    monkeypatch.setattr(hosts_plan, "write_events", fail)  # the last of what is written
    with pytest.raises(hosts_expected.Refused):
        cli("hosts", "import", write(path, {"a": (["g"], {"x": "y"}), "b": (["g"], {})}))
    assert sorted(stored(cli)) == ["twin"]


def test_two_names_of_one_host(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    fleet.add("localhost")
    cli("rename", "localhost", "web-1")
    ran = cli("hosts", "import", write(tmp_path / "i.json", {"web-1": (["g"], {}), "localhost": (["g"], {})}))
    assert (ran.status, "web-1 and localhost are one host here" in ran.err) == (3, True)


def test_pruning_takes_only_hosts_that_were_never_seen(
    fleet: Fleet, cli: Cli, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old-1", "old-2"):
        fleet.add(name, ago=None)
    fleet.add("heard", ago=50 * MINUTE)
    enrolled, _ = fleet.add("enrolled", ago=None)
    polled, _ = fleet.add("polled", ago=None, agent_version="")
    with fleet.store.transaction() as tx:
        add_certificate(tx, CertificateRow(b"f" * 32, enrolled, b"i" * 32, 1, 2**44))
        save_ssh_host(tx, polled, SshSettings(), polled=True)
    ran = cli("hosts", "import", str(inventory), "--prune")
    assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    dry = cli("hosts", "import", str(inventory), "--prune", "--dry-run").out
    assert dry.startswith("OK: would be: 3 created, 0 changed, 0 unchanged, 2 removed\n")
    assert "web-1" not in stored(cli)
    assert "old-1" in stored(cli)
    asked: list[str] = []

    def refuse(question: str, about: Iterable[str]) -> None:
        asked.extend([question, *about])
        raise CliError("nothing was changed")

    with monkeypatch.context() as patch:
        patch.setattr(hosts_expected, "ask", refuse)
        assert cli("hosts", "import", str(inventory), "--prune").status == 3
    assert asked[0] == "Remove 2 hosts that the inventory does not name?"
    assert [text.split()[0] for text in asked[1:]] == ["old-1", "old-2"]
    assert "web-1" not in stored(cli)
    ran = cli("hosts", "import", str(inventory), "--prune", "--yes")
    assert ran.out.startswith("OK: 3 created, 0 changed, 0 unchanged, 2 removed\n")
    assert "heard     kept     has reported" in ran.out
    assert "enrolled  kept     is enrolled" in ran.out
    assert "polled    kept     is polled over SSH" in ran.out
    assert sorted(stored(cli)) == ["enrolled", "heard", "lone", "polled", "web-1", "web-2"]
    assert sorted(event for event in events(cli) if "old" in event) == ["removed old-1", "removed old-2"]
    again = cli("hosts", "import", str(inventory), "--prune", "--json").json  # asks nothing: there is nothing
    assert (again["removed"], again["kept"]) == ([], ["enrolled", "heard", "polled"])


def test_without_prune_nothing_goes(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    fleet.add("old", ago=None)
    assert cli("hosts", "import", str(inventory), "--json").json["removed"] == []
    assert "old" in stored(cli)


def test_a_host_that_reports_at_that_moment_is_not_pruned(
    fleet: Fleet, cli: Cli, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _ = fleet.add("late", ago=None)
    fleet.add("old", ago=None)
    surplus, looks = hosts_expected._surplus, []

    def look(tx: Transaction, steps: Any) -> Any:
        found = surplus(tx, steps)
        looks.append(1)
        if len(looks) == 2:  # the look that removes
            tx.execute("UPDATE host_seen SET received_at = 1 WHERE host = %s", (host,))
        return found

    cli("hosts", "import", str(inventory))
    monkeypatch.setattr(hosts_expected, "_surplus", look)
    ran = cli("hosts", "import", str(inventory), "--prune", "--yes", "--json")
    assert ran.json["removed"] == ["old"]
    assert len(looks) == 2
    assert "late" in stored(cli)


def test_two_at_once_make_one_record(
    fleet: Fleet, cli: Cli, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else imports the same between the look and the change."""
    plan, looked = hosts_plan.plan, []

    def look(tx: Transaction, wanted: Any) -> Any:
        steps = plan(tx, wanted)
        if not looked:
            looked.append(1)
            hosts_plan.carry_out(tx, plan(tx, wanted), fleet.now)
        return steps

    monkeypatch.setattr(hosts_plan, "plan", look)
    ran = cli("hosts", "import", str(inventory))
    assert ran.out.startswith("OK: 0 created, 0 changed, 3 unchanged\n")
    assert sorted(events(cli)) == ["added lone", "added web-1", "added web-2"]


def test_an_inventory_on_standard_input(fleet: Fleet, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(INVENTORY).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert cli("hosts", "import", "-").out.startswith("OK: 3 created")


def test_options_of_the_list_do_not_go_ahead_of_import(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    for options in (["--json"], ["--group", "web"], ["--limit", "1"]):
        ran = cli("hosts", *options, "import", str(inventory))
        assert ran.status == 3
        assert f"{options[0]} does not go ahead of import" in ran.err
    assert stored(cli) == {}
    assert cli("hosts", "web-1").status == 3


def test_removing_and_rebinding(fleet: Fleet, cli: Cli, inventory: Path) -> None:
    cli("hosts", "import", str(inventory))
    new, _ = fleet.add("localhost")
    with fleet.store.transaction() as tx:
        save_labels(tx, [(new, "site", "nowhere"), (new, "new", "1")])
    assert cli("rebind", "web-1", "localhost", "--yes").status == 0
    assert stored(cli)["web-1"][1] == {"rack": "12", "site": "berlin"}
    assert cli("remove", "web-1", "--yes").status == 0
    with fleet.store.transaction(write=False) as tx:
        assert tx.query("SELECT COUNT(*) FROM host_label") == [(2,)], "those of web-2"


def test_groups_that_were_assigned_before_there_were_labels(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upgrade keeps them, and may be cut off and run again."""
    every = schema._migrations
    store = open_store(database_url, pool_size=1, create=True)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_migrations", lambda name: [one for one in every(name) if one[0] < 4])
        assert schema.upgrade(store, lambda: 1) == [1, 2, 3]
    one = record("a", groups=("own",))
    with store.transaction() as tx:
        hosts.add_hosts(tx, [one], 1)
        for table in ("assigned_group", "host_group"):
            tx.execute(f"INSERT INTO {table} (host, name) SELECT id, 'given' FROM host")
    for _ in range(2):
        assert schema.upgrade(store, lambda: 1) == [4]
        with store.transaction() as tx:
            found = find(tx, one)
            assert (found.record.groups, found.assigned, found.named) == (("given", "own"), ("given",), ())
            tx.execute("DELETE FROM schema_version WHERE version = 4")
    store.close()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many statements each call sends: drivers put the rows of an INSERT together, and of nothing else."""
    sent: list[int] = []
    execute, execute_many, query = Transaction.execute, Transaction.execute_many, Transaction.query

    def count(tx: Transaction, statement: str, parameters: Sequence[object] = ()) -> int:
        sent.append(1)
        return execute(tx, statement, parameters)

    def count_many(tx: Transaction, statement: str, rows: Sequence[Sequence[object]]) -> int:
        sent.append(min(1, len(rows)) if statement.startswith("INSERT") else len(rows))
        return execute_many(tx, statement, rows)

    def count_query(tx: Transaction, statement: str, parameters: Sequence[object] = ()) -> Any:
        sent.append(1)
        return query(tx, statement, parameters)

    monkeypatch.setattr(Transaction, "execute", count)
    monkeypatch.setattr(Transaction, "execute_many", count_many)
    monkeypatch.setattr(Transaction, "query", count_query)
    return sent


def test_five_thousand_hosts_take_few_statements(
    fleet: Fleet, cli: Cli, tmp_path: Path, statements: list[int]
) -> None:
    names = [f"host-{number:04}" for number in range(5_000)]
    path = tmp_path / "big.json"

    def run(outcome: str, *arguments: str) -> int:
        statements.clear()
        assert cli("hosts", "import", str(path), *arguments).out.startswith(f"OK: {outcome}")
        return sum(statements)

    few = 150  # of at most 500 hosts each
    write(path, {name: (["g", "h"], {"rack": i % 40, "site": "x"}) for i, name in enumerate(names)})
    assert run("5000 created") < few
    assert run("0 created, 0 changed, 5000 unchanged") < few
    write(path, {name: (["g", "k"], {"rack": i % 30, "zone": "y"}) for i, name in enumerate(names)})
    assert run("0 created, 5000 changed") < few
    write(path, {"other": ([], {"rack": 1})})
    assert run("1 created, 0 changed, 0 unchanged, 5000 removed", "--prune", "--yes") < few
    assert list(stored(cli)) == ["other"]


def test_labels_are_told_apart_by_every_letter(fleet: Fleet) -> None:
    labels = {"a": "x", "A": "X", "ä": "x ", "a ": "", "%s": "100 %"}
    host, _ = fleet.add("one")
    with fleet.store.transaction() as tx:
        save_labels(tx, [(host, name, content) for name, content in labels.items()])
    with fleet.store.transaction(write=False) as tx:
        assert load_labels(tx, [host, 999_999]) == {host: labels}
