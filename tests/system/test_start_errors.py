"""Whatever is wrong at the start ends in one clear line and the right exit code, no traceback."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.mariadb_server import database_of
from tests.processes import PROGRAMS, Site, clean_environ

UNAVAILABLE, CONFIG, UNKNOWN = 69, 78, 3


def collector(*arguments: str, **settings: str) -> tuple[int, str]:
    """Run fleet-collector to its end; its exit code and its one line."""
    return run("fleet-collector", *arguments, **settings)


def run(program: str, *arguments: str, **settings: str) -> tuple[int, str]:
    done = subprocess.run(
        [PROGRAMS / program, *arguments],
        env=clean_environ({"FLEETPULSE_LISTEN": "127.0.0.1:0", "FLEETPULSE_TLS": "off", **settings}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(program)
    return done.returncode, lines[0]


def on_every_program(database: str) -> dict[str, tuple[int, str]]:
    return {
        "fleet-collector": collector(FLEETPULSE_DATABASE=database),
        "collector-cli": run("collector-cli", "stale", FLEETPULSE_DATABASE=database),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lisen = 1", "line 1: lisen: no such key; did you mean listen?"),
        ("[silence]\nfleet_share = 'a lot'", "line 2: silence.fleet_share: expected `float`, got `str`"),
        ("[silence]\n\nfleet_share = 7", "silence.fleet_share: 7 is no share between 0 and 1"),
        ("tls = 'off'\nlisten = '0.0.0.0:18443'", "plaintext is allowed only on loopback"),
        ("listen = 'nonsense'", "expected HOST:PORT"),
        ("writers = 7", "writers: 7 do not fit into pool_size 8"),
        ("pool_size = \n", "at line 1"),
        ("drain_timeout = '5 parsecs'", "line 1: drain_timeout: expected a duration"),
        ("database = 'postgres://x'", "expected sqlite:///"),
        ("database = 'mysql://root:secret@localhost/x'", "database_password_file"),
    ],
)
def test_wrong_configuration(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "collector.toml"
    path.write_text(text)
    settings = {} if "listen" in text else {"FLEETPULSE_LISTEN": "127.0.0.1:0"}
    status, line = (
        collector("--config", str(path), **settings) if settings else collector_without_listen(path)
    )
    assert status == CONFIG
    assert expected in line
    assert "secret" not in line


def collector_without_listen(path: Path) -> tuple[int, str]:
    environ = clean_environ({})
    done = subprocess.run(
        [PROGRAMS / "fleet-collector", "--config", path],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def test_plaintext_on_another_address_is_refused():
    status, line = collector(FLEETPULSE_LISTEN="0.0.0.0:18443", FLEETPULSE_TLS="off")
    assert status == CONFIG
    assert "0.0.0.0:18443 is reachable from other machines" in line
    assert 'set tls = "on"' in line


def test_a_misspelt_variable_is_an_error():
    status, line = collector(FLEETPULSE_DATABSE="x")
    assert status == CONFIG
    assert "did you mean FLEETPULSE_DATABASE?" in line


def test_a_configuration_that_is_not_there(tmp_path: Path):
    status, line = collector("--config", str(tmp_path / "none.toml"))
    assert status == CONFIG
    assert "cannot read" in line


def test_broken_rules_name_file_and_line(tmp_path: Path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\ncheck = "cpu"\nmeasurement = "m"\nwarning = 0.9\nwarning_clear = 0.95\n')
    status, line = collector(FLEETPULSE_RULES=str(rules), FLEETPULSE_DATABASE=f"sqlite:///{tmp_path}/f.db")
    assert status == CONFIG
    assert f"{rules}: rule[0].warning_clear: 0.95 lies above warning = 0.9" in line


def test_a_database_without_schema(database_url: str):
    for program, (status, line) in on_every_program(database_url).items():
        assert status == (CONFIG if program == "fleet-collector" else UNKNOWN)
        assert "run: collector-cli db upgrade" in line


def test_a_schema_of_a_newer_version(site: Site):
    site.upgrade()
    change_schema_version(site.database_url, 99)
    for program, (status, line) in on_every_program(site.database_url).items():
        assert status == (CONFIG if program == "fleet-collector" else UNKNOWN)
        assert "schema version 99, newer than the" in line


def change_schema_version(database_url: str, version: int) -> None:
    from collector.store.store import open_store

    store = open_store(database_url, pool_size=1)
    with store.transaction() as tx:
        tx.execute("INSERT INTO schema_version (version, applied_at) VALUES (%s, 0)", (version,))
    store.close()


def test_an_unreachable_database():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"mysql://root@127.0.0.1:{nobody.getsockname()[1]}/fleet"
        for program, (status, line) in on_every_program(url).items():
            assert status == (UNAVAILABLE if program == "fleet-collector" else UNKNOWN)
            assert "Can't connect to" in line


def test_a_wrong_password(mariadb):
    database = database_of(mariadb.fresh_database())
    mariadb.query("CREATE OR REPLACE USER fleet@'127.0.0.1' IDENTIFIED BY 'right'")
    url = f"mysql://fleet@127.0.0.1:{mariadb.port}/{database}"
    status, line = collector(FLEETPULSE_DATABASE=url, FLEETPULSE_DATABASE_PASSWORD="wr0ng")
    assert status == CONFIG
    assert "Access denied" in line
    assert "wr0ng" not in line


def test_a_port_in_use(sqlite_site: Site):
    sqlite_site.cli("db", "upgrade", check=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, line = collector(FLEETPULSE_DATABASE=sqlite_site.database_url, FLEETPULSE_LISTEN=address)
    assert status == UNAVAILABLE
    assert f"cannot listen on {address}: another program has the port" in line


def test_two_collectors_do_not_share_a_port(sqlite_site: Site):
    sqlite_site.collector()
    status, line = collector(
        FLEETPULSE_DATABASE=sqlite_site.database_url, FLEETPULSE_LISTEN=sqlite_site.address
    )
    assert status == UNAVAILABLE
    assert "cannot listen" in line


def test_a_pool_that_does_not_fit_names_both_numbers(mariadb_site: Site, mariadb):
    mariadb_site.collector(pool_size="8", name="first")
    mariadb.query("SET GLOBAL max_connections = 25")
    try:
        status, line = collector(
            FLEETPULSE_DATABASE=mariadb_site.database_url, FLEETPULSE_POOL_SIZE="8", FLEETPULSE_NAME="second"
        )
    finally:
        mariadb.query("SET GLOBAL max_connections = 151")
    assert status == CONFIG
    assert "pool_size 8 and the 8 connections of 1 other live collectors" in line
    assert "max_connections 25 less connection_reserve 10" in line
