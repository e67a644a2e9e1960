"""collector-cli ca, as an admin runs it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.cli.main import run
from collector.identity.keyring import Keyring
from collector.identity.material import Material
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.schema import upgrade
from collector.store.store import open_store
from tests.collector.fleet import Fleet

FAR = 2**45  # milliseconds
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/f.db"
    monkeypatch.setenv("FLEETPULSE_DATABASE", url)
    monkeypatch.setenv("FLEETPULSE_IDENTITY_DIR", str(tmp_path / "identity"))
    monkeypatch.setattr("collector.cli.ca._LOOKED", 0)
    return url


@pytest.fixture
def cli(url: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(["ca", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def shown(cli: Cli) -> Any:
    status, out, _ = cli("show", "--json")
    assert status == 0
    return json.loads(out)


def add_host(url: str, issuer: bytes) -> None:
    """A host with a valid certificate of that CA."""
    store = open_store(url, pool_size=1, create=True)
    upgrade(store, lambda: 1)
    number, _ = Fleet(store).add("web-1")
    with store.transaction() as tx:
        add_certificate(tx, CertificateRow(b"f" * 32, number, issuer, 1, FAR))
        add_certificate(tx, CertificateRow(b"e" * 32, number, issuer, 1, 2))
    store.close()


def test_init_makes_a_ca_once_and_says_its_fingerprint(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("show")
    assert (status, out) == (3, "")
    assert "make one: collector-cli ca init" in err
    status, made, _ = cli("init")
    assert status == 0
    assert made.startswith(f"made a CA: {tmp_path}/identity/ca.pem")
    files = {path: path.read_bytes() for path in (tmp_path / "identity").iterdir()}
    status, again, _ = cli("init")
    assert status == 0
    assert again.startswith("there is a CA already")
    assert files == {path: path.read_bytes() for path in (tmp_path / "identity").iterdir()}
    fingerprints = {re.search(r"[0-9a-f]{64}", text)[0] for text in (made, again)}  # type: ignore[index]
    assert fingerprints == {shown(cli)["fingerprint"]}


def test_show_counts_the_hosts_of_each_ca_if_it_can(cli: Cli, url: str) -> None:
    cli("init")
    status, out, _ = cli("show")
    assert status == 0
    assert "Hosts are not counted: database" in out
    [authority] = shown(cli)["authorities"]
    assert (authority["hosts"], authority["signs"]) == (None, True)
    add_host(url, bytes.fromhex(authority["fingerprint"]))
    [authority] = shown(cli)["authorities"]
    assert authority["hosts"] == 1
    status, out, _ = cli("show")
    assert status == 0
    assert re.search(
        r"CN=fleetpulse CA [0-9a-f]{8} +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +yes +1 +[0-9a-f]{64}\n", out
    )
    assert "for " in out
    assert "localhost" in out


def test_the_ca_is_changed_when_no_host_is_left_behind(cli: Cli, url: str) -> None:
    cli("init")
    old = shown(cli)["fingerprint"]
    add_host(url, bytes.fromhex(old))
    status, out, _ = cli("rotate")
    assert status == 0
    assert f"vouches for the collector: {old}" in out
    both = shown(cli)
    assert both["fingerprint"] == old  # what a new machine can check now
    assert [one["signs"] for one in both["authorities"]] == [True, False]
    assert both["changing"]
    assert cli("rotate")[0] == 3
    status, _, err = cli("finish")
    assert status == 3
    assert "1 certificate of the old CA would not be accepted any more" in err
    assert "web-1 (heard" in err
    assert " ago); " in err
    assert shown(cli) == both
    status, out, _ = cli("finish", "--force")
    new = shown(cli)
    assert status == 0
    assert new["fingerprint"] == both["authorities"][0]["fingerprint"] == new["server"]["issuer"]
    assert new["fingerprint"] in out
    assert not new["changing"]
    assert cli("finish")[0] == 0  # nothing left to do


def test_those_who_keep_a_change_waiting_are_named(cli: Cli, url: str) -> None:
    cli("init")
    old = bytes.fromhex(shown(cli)["fingerprint"])
    cli("rotate")
    store = open_store(url, pool_size=1, create=True)
    upgrade(store, lambda: 1)
    fleet = Fleet(store)
    for number in range(14):
        host, _ = fleet.add(f"web-{number:02}", ago=60_000 * (20 - number) if number else None)
        issuer, not_after = (b"x" * 32, FAR) if number == 12 else (old, 2 if number == 13 else FAR)
        with store.transaction() as tx:
            add_certificate(tx, CertificateRow(bytes([number]) * 32, host, issuer, 1, not_after))
    store.close()
    status, _, err = cli("finish")
    assert status == 3
    assert (
        "12 certificates of the old CA would not be accepted any more: web-00 (never heard), web-01 (" in err
    )
    assert "web-09 (heard 11m 0s ago) and 2 more; the hosts" in err


def test_a_running_collector_gets_to_see_both_cas(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the new one alone for a mistake."""
    cli("init")
    monkeypatch.setattr("collector.cli.ca._LOOKED", 0.4)
    cli("rotate")
    began = time.monotonic()
    assert cli("finish", "--force")[0] == 0
    assert time.monotonic() - began > 0.2
    assert cli("finish")[0] == 0


def test_a_change_is_not_ended_blindly(cli: Cli) -> None:
    cli("init")
    cli("rotate")
    status, _, err = cli("finish")
    assert status == 3
    assert "whether hosts still need the old CA is not known: database" in err


def test_who_got_a_certificate_of_the_old_ca_at_the_last_moment_is_told(
    cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("init")
    old = bytes.fromhex(shown(cli)["fingerprint"])
    add_host(url, b"x" * 32)
    cli("rotate")
    finish = Keyring.finish

    def late(keyring: Keyring) -> Material:
        store = open_store(url, pool_size=1)
        with store.transaction() as tx:
            add_certificate(tx, CertificateRow(b"l" * 32, 1, old, 1, FAR))
        store.close()
        return finish(keyring)

    monkeypatch.setattr(Keyring, "finish", late)
    status, out, _ = cli("finish")
    assert status == 1
    assert "1 certificate of the old CA came in between and will not be accepted" in out
    assert not shown(cli)["changing"]


def test_what_is_wrong_with_the_files_is_one_line(cli: Cli, tmp_path: Path) -> None:
    cli("init")
    (tmp_path / "identity" / "ca.key").chmod(0o644)
    for command in (["init"], ["show"], ["rotate"], ["finish"]):
        status, out, err = cli(*command)
        assert (status, out) == (3, "")
        assert err.count("\n") == 1
        assert f"run: chmod 600 {tmp_path}/identity/ca.key" in err
