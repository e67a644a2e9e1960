"""docs/cli.md and the program say the same."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from collector.cli.main import COMMANDS, cli
from collector.cli.main import run as run_command
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.ssh_settings import SshSettings
from collector.core.status import EventKind
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.conflicts import ConflictRow, save_conflict
from collector.store.diagnoses import Finding, save_findings
from collector.store.labels import save_labels
from collector.store.schema import upgrade
from collector.store.ssh_hosts import save_group_settings, save_ssh_host
from collector.store.store import open_store
from fleetpulse.model import State
from tests.collector.fleet import MINUTE, Fleet, failing

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def sections() -> dict[str, str]:
    """The text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def command(name: str) -> click.Command:
    found = importlib.import_module(COMMANDS[name][0]).command
    assert isinstance(found, click.Command)
    return found


def options(of: click.Command) -> Iterator[str]:
    for parameter in of.params:
        if isinstance(parameter, click.Option):
            names = (*parameter.opts, *parameter.secondary_opts)
            yield from (name for name in names if name.startswith("--"))
    if isinstance(of, click.Group):
        for child in of.commands.values():
            yield from options(child)


def test_every_command_has_a_section_and_no_section_is_of_none() -> None:
    assert [name for name in sections() if name != "For every command"] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_exists(name: str) -> None:
    documented = set(re.findall(r"`(--[a-z-]+)", sections()[name]))
    others = {"--watch", "--follow", "--limit"} | ({"--json"} if name == "show" else set())
    exist = set(options(command(name)))
    assert exist <= documented
    assert documented - exist <= others


def test_global_options_are_documented() -> None:
    text = sections()["For every command"]
    assert {*options(cli), "--help"} == set(re.findall(r"`(--[a-z-]+)", text)) - {
        "--watch",
        "--follow",
        "--group",
        "--label",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_exit_codes(name: str) -> None:
    found = command(name)
    leaves = [*found.commands.values()] if isinstance(found, click.Group) else [found]
    if isinstance(found, click.Group) and found.invoke_without_command:
        leaves.append(found)
    for leaf in leaves:
        assert "Example" in (leaf.help or "")
        assert "Exit codes:" in (leaf.help or "")


def test_every_kind_of_event_is_named() -> None:
    named = re.search(r"Kinds: (.+)", sections()["events"])
    assert named is not None
    assert re.findall(r"`([a-z-]+)`", named[1]) == [kind.value for kind in EventKind]


def shape(value: object) -> object:
    """The keys at every level."""
    if isinstance(value, dict):
        return {key: shape(item) if key not in ("facts", "labels") else None for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], dict) else []
    return None


@pytest.mark.parametrize(
    ("name", "place", "arguments"),
    [
        ("stale", 0, ["stale"]),
        ("status", 0, ["status"]),
        ("hosts", 0, ["hosts", "--limit", "1"]),
        ("hosts", 1, ["hosts", "await", "NAMES", "--timeout", "0s"]),
        ("show", 0, ["show", "one", "--events", "0"]),
        ("events", 0, ["events"]),
        ("ssh", 0, ["ssh", "list"]),
        ("token", 0, ["token", "create"]),
        ("token", 1, ["token", "create", "--inventory", "NAMES", "--output", "-"]),
        ("ca", 0, ["ca", "show"]),
        ("db", 0, ["db", "check"]),
        ("doctor", 0, ["doctor"]),
    ],
)
def test_json_has_the_documented_shape(
    name: str,
    place: int,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"sqlite:///{tmp_path}/f.db"
    store = open_store(url, pool_size=1, create=True)
    upgrade(store, lambda: 1)
    fleet = Fleet(store)
    fleet.listen()
    one, _ = fleet.add(
        "one",
        ago=5 * MINUTE,
        checks=failing(State.CRITICAL, "x", 1),
        facts={"os.type": "linux"},
        groups=("g",),
    )
    fleet.add("two")
    with store.transaction() as tx:
        save_labels(tx, [(one, "site", "berlin")])
        [(heard_at,)] = tx.query("SELECT received_at FROM host_seen WHERE host = %s", (one,))
        diagnosis = Diagnosis(DiagnosisKind.AGENT_DEAD, "x")
        save_findings(tx, [Finding(one, "one", heard_at, diagnosis, has_health=True)], fleet.now)
        save_ssh_host(tx, one, SshSettings(port=23), polled=False)
        save_group_settings(tx, "g", SshSettings(jump="gate"))
        add_certificate(tx, CertificateRow(b"f" * 32, one, b"i" * 32, 1, 2**44))
        tx.execute(
            "INSERT INTO event (at, hostname, kind, subject, instance, old_value, new_value, message, measured_at) "
            "VALUES (1, '', 'back', '', '', '', '', '', 0)"
        )
    store.close()
    monkeypatch.setenv("FLEETPULSE_DATABASE", url)
    monkeypatch.setenv("FLEETPULSE_LISTEN", f"unix:{tmp_path}/nobody")
    monkeypatch.setenv("FLEETPULSE_IDENTITY_DIR", f"{tmp_path}/identity")
    if name == "ca":
        run_command(["ca", "init"])
        capsys.readouterr()
    (tmp_path / "NAMES").write_text("one\nweb-17\nweb-18\n")
    monkeypatch.chdir(tmp_path)
    run_command([*arguments, "--json"])
    documented = re.findall(r"```json\n(.+?)```", sections()[name], re.DOTALL)[place]
    assert shape(json.loads(capsys.readouterr().out)) == shape(json.loads(documented))


def test_every_kind_of_diagnosis_is_explained() -> None:
    text = sections()["For every command"].partition("### Diagnosis")[2]
    assert re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE) == [kind.value for kind in DiagnosisKind]


def test_a_conflict_has_the_documented_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/f.db"
    store = open_store(url, pool_size=1, create=True)
    upgrade(store, lambda: 1)
    host, _ = Fleet(store).add("one")
    with store.transaction() as tx:
        save_conflict(tx, ConflictRow(host, b"p" * 16, "one", "192.0.2.9", "m", "h", "b", "i", 1, 2))
    store.close()
    monkeypatch.setenv("FLEETPULSE_DATABASE", url)
    documented = re.search(r"```json\n(.+?)```", sections()["For every command"], re.DOTALL)
    assert documented is not None
    for command_name, key in (("stale", "conflicts"), ("status", "conflicts"), ("show", "conflict")):
        run_command([command_name, *(["one"] if command_name == "show" else []), "--json"])
        found = json.loads(capsys.readouterr().out)[key]
        [conflict] = found if isinstance(found, list) else [found]
        assert shape(conflict) == shape(json.loads(documented[1]))
