"""The database's accounts: what docs/security.md grants is enough, and is not more than is needed."""

from __future__ import annotations

import time

import pytest

from collector.store.errors import StoreError
from collector.store.schema import upgrade
from collector.store.store import open_store
from tests.mariadb_server import SERVICE, UPGRADE, MariadbServer, database_of, documented_privileges
from tests.processes import Site, wait_until

# MySQL asks for it to make a foreign key; MariaDB does not.
ONLY_MYSQL_ASKS_FOR = "REFERENCES"
PRIVILEGES = documented_privileges()[UPGRADE].split(", ")


def make_schema(server: MariadbServer, privileges: list[str]) -> None:
    url = server.fresh_database()
    database = database_of(url)
    server.query("CREATE OR REPLACE USER maker@localhost")
    server.query(f"GRANT {', '.join(privileges)} ON {database}.* TO maker@localhost")
    store = open_store(url.replace("root@", "maker@"), pool_size=1)
    try:
        upgrade(store, lambda: time.time_ns() // 1_000_000)
    finally:
        store.close()


def test_the_upgrade_account_can_make_the_schema(mariadb: MariadbServer) -> None:
    make_schema(mariadb, PRIVILEGES)


@pytest.mark.parametrize("privilege", [name for name in PRIVILEGES if name != ONLY_MYSQL_ASKS_FOR])
def test_the_upgrade_account_needs_each_of_its_privileges(mariadb: MariadbServer, privilege: str) -> None:
    with pytest.raises(StoreError, match=f"{privilege} command denied"):
        make_schema(mariadb, [name for name in PRIVILEGES if name != privilege])


def test_the_collector_and_the_admin_work_with_the_service_account(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    site = mariadb_site
    assert documented_privileges()[SERVICE] == "SELECT, INSERT, UPDATE, DELETE"
    granted = [row[0] for row in mariadb.query("SHOW GRANTS FOR fleet@localhost")]
    database = database_of(site.database_url)
    # "USAGE" is no privilege: that it may log in.
    assert [line.partition(" TO ")[0] for line in granted] == [
        "GRANT USAGE ON *.*",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.*",
    ]
    collector = site.collector()
    site.agent("one", interval="200ms")
    wait_until(lambda: site.cli("stale").returncode == 0 and "1 fresh" in site.cli("status").stdout)
    for command in (["hosts"], ["show", "one"], ["events"], ["remove", "one", "--yes"], ["doctor"]):
        done = site.cli(*command)
        assert "denied" not in done.stdout + done.stderr
    for statement in ("CREATE TABLE mine (id INT)", "ALTER TABLE host ADD mine INT", "DROP TABLE event"):
        connection = mariadb.connect(database, user="fleet")
        with pytest.raises(Exception, match="command denied"):
            connection.cursor().execute(statement)
        connection.close()
    with pytest.raises(Exception, match="denied"):
        mariadb.connect("mysql", user="fleet")
    assert collector.stop() == 0
