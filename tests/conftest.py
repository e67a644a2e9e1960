"""Fixtures that every part's tests share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from collector.store.schema import upgrade
from collector.store.store import Store, open_store
from tests.mariadb_server import UPGRADE, MariadbServer, missing_parts
from tests.processes import Site, running_site

# Where many processes share two cores, the clock on the wall says nothing of how fast a generator or a
# tested function is. What must be fast is measured by the test itself, in CPU time.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

_LONGEST = ("system/test_rollout", "system/test_soak", "system/test_database_faults", "system/")


def require(missing: str) -> None:
    """Skip the test when a part of the environment is missing; in CI nothing may be."""
    if not missing:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.hookimpl(trylast=True)  # after the order was shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "mariadb" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.mariadb)
    # What takes minutes begins first, so that no core waits at the end for the other.
    items.sort(key=lambda item: next((i for i, part in enumerate(_LONGEST) if part in item.nodeid), 9))


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariadbServer]:
    """A server for this test process; take `mariadb` instead, which cleans up after each test."""
    require(missing_parts())
    with MariadbServer() as server:
        yield server


@pytest.fixture
def mariadb(mariadb_server: MariadbServer) -> Iterator[MariadbServer]:
    """A running server whose databases are dropped after the test. The test may restart it."""
    if not mariadb_server.is_running:
        mariadb_server.start()
    yield mariadb_server
    if not mariadb_server.is_running:
        mariadb_server.start()
    mariadb_server.drop_databases()


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a fresh, empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fleet.db"
    server: MariadbServer = request.getfixturevalue("mariadb")
    return server.fresh_database()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """An open store at `database_url` with the current schema."""
    store = open_store(database_url, pool_size=4, create=True)
    upgrade(store, lambda: time.time_ns() // 1_000_000)
    yield store
    store.close()


@pytest.fixture
def site(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Site]:
    """Real processes on a fresh database, once on each kind."""
    urls = [database_url, ""]
    if database_url.startswith("mysql:"):
        server: MariadbServer = request.getfixturevalue("mariadb")
        urls = documented_accounts(server, database_url)
    with running_site(urls[0], tmp_path, urls[1]) as running:
        yield running


@pytest.fixture
def mariadb_site(mariadb: MariadbServer, tmp_path: Path) -> Iterator[Site]:
    """Real processes on a fresh MariaDB database."""
    service, upgrade = documented_accounts(mariadb, mariadb.fresh_database())
    with running_site(service, tmp_path, upgrade) as running:
        yield running


def documented_accounts(server: MariadbServer, url: str) -> list[str]:
    """The database's addresses for the service and for who makes the schema: no test needs more."""
    return [server.account(url), server.account(url, "upgrader", like=UPGRADE)]


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Iterator[Site]:
    """Real processes on a fresh SQLite database."""
    with running_site(f"sqlite:///{tmp_path}/fleet.db", tmp_path) as running:
        yield running
