"""What goes wrong in a real database, and what the rest of the collector is told."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from collector.store.errors import (
    SchemaMismatch,
    StoreConflict,
    StoreError,
    StoreLocked,
    StoreMisconfigured,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
)
from collector.store.schema import upgrade
from collector.store.store import Store, open_store
from tests.mariadb_server import MariadbServer


def use(store: Store) -> None:
    with store.transaction() as tx:
        tx.query("SELECT 1")


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open_one(url: str, *, pool_size: int = 3, **options: object) -> Store:
        store = open_store(url, pool_size=pool_size, pool_timeout=1, **options)  # type: ignore[arg-type]
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


# --- both ---


def test_a_missing_table_is_a_schema_mismatch(database_url: str, opened: Callable[..., Store]) -> None:
    store = opened(database_url, create=True)
    with pytest.raises(SchemaMismatch, match="collector-cli db upgrade"), store.transaction() as tx:
        tx.query("SELECT * FROM host")


def test_a_missing_column_is_a_schema_mismatch(store: Store) -> None:
    with pytest.raises(SchemaMismatch), store.transaction() as tx:
        tx.query("SELECT nothing_of_ours FROM host")


def test_a_statement_that_is_wrong_is_a_plain_store_error(store: Store) -> None:
    with pytest.raises(StoreError) as caught, store.transaction() as tx:
        tx.query("SELEKT 1")
    assert type(caught.value) is StoreError
    use(store)


def test_a_broken_constraint_is_a_conflict(store: Store) -> None:
    with pytest.raises(StoreConflict), store.transaction() as tx:
        tx.execute("INSERT INTO host_seen (host) VALUES (424242)")
    use(store)


def test_data_that_fits_no_column_is_refused_with_its_whole_transaction(store: Store) -> None:
    number = "many" if store.dialect.name == "sqlite" else 2**40
    with pytest.raises(StoreRefused):
        _write_a_setting_and_a_pool_size(store, number)
    with store.transaction() as tx:
        assert tx.query("SELECT COUNT(*) FROM setting") == [(0,)]


def _write_a_setting_and_a_pool_size(store: Store, pool_size: object) -> None:
    with store.transaction() as tx:
        tx.execute("INSERT INTO setting (name, content) VALUES ('a', 'b')")
        tx.execute(
            "INSERT INTO collector (name, address, version, pool_size, listening_since, heartbeat_at, database_at) "
            "VALUES ('c', 'a', 'v', %s, 0, 0, 0)",
            (pool_size,),
        )


def test_deleting_what_somebody_has_just_referred_to_is_a_conflict(store: Store) -> None:
    with store.transaction() as tx:
        tx.execute("INSERT INTO layout (id, hash, content) VALUES (1, %s, %s)", (b"0123456789abcdef", b"[]"))
        tx.execute(
            "INSERT INTO host (id, host_id, hostname, machine_id, boot_id, agent_version, address, interval_ms, "
            "ttl_ms, added_at) VALUES (1, 'a', '', '', '', '', '', 1, 1, 1)"
        )
        tx.execute("INSERT INTO host_latest (host, layout) VALUES (1, 1)")
    with pytest.raises(StoreConflict), store.transaction() as tx:
        tx.execute("DELETE FROM layout WHERE id = 1")
    use(store)


def test_no_driver_error_is_left_behind_its_map(store: Store) -> None:
    """Whatever the driver raises, with or without a number, leaves as one of ours."""
    dialect = store.dialect
    kinds = [dialect.driver_error, *_subclasses(dialect.driver_error)]
    for kind in kinds:
        for arguments in ((), ("text",), (0, ""), (99999, "unheard of")):
            assert isinstance(dialect.to_store_error(kind(*arguments), 0.0), StoreError)


def _subclasses(kind: type) -> list[type]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]


# --- SQLite ---


def test_sqlite_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreMisconfigured, match="collector-cli db upgrade"):
        open_store(f"sqlite:///{tmp_path}/none.db", pool_size=1)


def test_an_sqlite_database_is_its_owners_alone(tmp_path: Path, opened: Callable[..., Store]) -> None:
    file = tmp_path / "new.db"
    before = os.umask(0o022)
    try:
        store = opened(f"sqlite:///{file}", create=True)
        upgrade(store, lambda: 0)
        use(store)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == dict.fromkeys(("new.db", "new.db-wal", "new.db-shm"), 0o600)
        # One that is there already is as its owner wants it.
        store.close()
        file.chmod(0o640)
        use(opened(f"sqlite:///{file}"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_sqlite_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreMisconfigured, match="cannot make its folder"):
        open_store(f"sqlite:///{tmp_path}/file/f.db", pool_size=1, create=True)


def test_sqlite_file_that_is_something_else(tmp_path: Path, opened: Callable[..., Store]) -> None:
    path = tmp_path / "f.db"
    path.write_bytes(b"not a database at all " * 100)
    with pytest.raises(StoreMisconfigured, match="not a database"):
        use(opened(f"sqlite:///{path}"))


def test_sqlite_locked_by_another_writer(
    tmp_path: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.store.sqlite._BUSY_TIMEOUT", 0.05)
    url = f"sqlite:///{tmp_path}/f.db"
    upgrade(opened(url, create=True), lambda: 1)
    store = opened(url)
    other = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreLocked, match="locked"):
        use(store)
    with store.transaction(write=False) as tx:  # readers are not in the way
        assert tx.query("SELECT COUNT(*) FROM host") == [(0,)]
    other.close()
    use(store)


def test_sqlite_read_only(tmp_path: Path, opened: Callable[..., Store]) -> None:
    store = opened(f"sqlite:///{tmp_path}/f.db", pool_size=1, create=True)
    upgrade(store, lambda: 1)
    with store.transaction() as tx:
        tx.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreReadOnly), store.transaction() as tx:
        tx.execute("INSERT INTO setting (name, content) VALUES ('a', 'b')")


def test_sqlite_full(tmp_path: Path, opened: Callable[..., Store]) -> None:
    store = opened(f"sqlite:///{tmp_path}/f.db", pool_size=1, create=True)
    upgrade(store, lambda: 1)
    with store.transaction() as tx:
        pages = tx.query("PRAGMA page_count")[0][0]
        tx.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreReadOnly, match="full"), store.transaction() as tx:
        tx.execute("INSERT INTO setting (name, content) VALUES ('a', %s)", ("x" * 1_000_000,))


# --- MariaDB ---


def test_mariadb_unreachable(opened: Callable[..., Store], mariadb: MariadbServer) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        port = nobody.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=r"2002|2003"):
            use(opened(f"mysql://root@127.0.0.1:{port}/x"))
    with pytest.raises(StoreUnavailable, match="2002"):
        use(opened("mysql://root@/x?unix_socket=/nonexistent"))


def test_mariadb_refuses(opened: Callable[..., Store], mariadb: MariadbServer) -> None:
    url = mariadb.fresh_database()
    mariadb.query("CREATE OR REPLACE USER limited@localhost IDENTIFIED BY 'right'")
    limited = url.replace("root@", "limited@")
    with pytest.raises(StoreMisconfigured, match="1045"):
        use(opened(limited, password="wrong"))
    with pytest.raises(StoreMisconfigured, match="1044"):
        use(opened(limited, password="right"))
    mariadb.query("GRANT SELECT ON *.* TO limited@localhost")
    upgrade(opened(url), lambda: 1)
    with (
        pytest.raises(StoreMisconfigured, match="1142"),
        opened(limited, password="right").transaction() as tx,
    ):
        tx.execute("DELETE FROM host")
    with pytest.raises(StoreMisconfigured, match="1049"):
        use(opened(mariadb.url("no_such_database")))
    assert "right" not in repr(opened(limited, password="right").__dict__)


def test_mariadb_read_only(opened: Callable[..., Store], mariadb: MariadbServer) -> None:
    url = mariadb.fresh_database()
    store = opened(url)
    upgrade(store, lambda: 1)
    mariadb.query("CREATE OR REPLACE USER writer@localhost")
    mariadb.query("GRANT SELECT, INSERT ON *.* TO writer@localhost")
    writer = opened(url.replace("root@", "writer@"))
    mariadb.query("SET GLOBAL read_only = ON")
    try:
        with pytest.raises(StoreReadOnly, match="1290"), writer.transaction() as tx:
            tx.execute("INSERT INTO setting (name, content) VALUES ('a', 'b')")
    finally:
        mariadb.query("SET GLOBAL read_only = OFF")


def test_mariadb_full_of_connections(opened: Callable[..., Store], mariadb: MariadbServer) -> None:
    url = mariadb.fresh_database()
    mariadb.query("CREATE OR REPLACE USER crowd@localhost")
    mariadb.query("GRANT ALL ON *.* TO crowd@localhost WITH MAX_USER_CONNECTIONS 1")
    crowd = url.replace("root@", "crowd@")
    first, second = opened(crowd), opened(crowd)
    use(first)
    with pytest.raises(StoreUnavailable, match=r"1226|1203"):
        use(second)


def test_mariadb_lock_timeout_and_deadlock(
    opened: Callable[..., Store], mariadb: MariadbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.store.mysql._LOCK_TIMEOUT", 1)
    store_url = mariadb.fresh_database()
    store = opened(store_url)
    upgrade(store, lambda: 1)
    with store.transaction() as tx:
        tx.execute("INSERT INTO setting (name, content) VALUES ('a', ''), ('b', '')")
    with opened(store_url).transaction() as holder:
        holder.execute("UPDATE setting SET content = 'x' WHERE name = 'a'")
        with pytest.raises(StoreLocked, match="1205"), store.transaction() as tx:
            tx.execute("UPDATE setting SET content = 'y' WHERE name = 'a'")
    both_hold_one = threading.Barrier(2)

    def lock(first: str, second: str) -> str:
        try:
            with store.transaction() as tx:
                tx.execute("UPDATE setting SET content = 'z' WHERE name = %s", (first,))
                both_hold_one.wait(20)
                tx.execute("UPDATE setting SET content = 'z' WHERE name = %s", (second,))
        except StoreConflict as error:
            return str(error)
        return "committed"

    with ThreadPoolExecutor(2) as threads:
        outcomes = sorted(threads.map(lock, "ab", "ba"))
    assert outcomes[0] == "committed"
    assert "1213" in outcomes[1]


def test_mariadb_kills_an_idle_connection_and_nobody_notices(
    opened: Callable[..., Store], mariadb: MariadbServer
) -> None:
    store = opened(mariadb.fresh_database())
    with store.transaction() as tx:
        killed = tx.query("SELECT CONNECTION_ID()")[0][0]
    mariadb.query(f"KILL {killed}")
    for _ in range(2):  # every link of the pool
        use(store)
    mariadb.restart()
    for _ in range(2):
        use(store)


def test_mariadb_connection_lost_in_a_transaction_loses_the_transaction(
    opened: Callable[..., Store], mariadb: MariadbServer
) -> None:
    store = opened(mariadb.fresh_database())
    upgrade(store, lambda: 1)
    with pytest.raises(StoreUnavailable), store.transaction() as tx:  # noqa: PT012 - the loss is in between
        tx.execute("INSERT INTO setting (name, content) VALUES ('half', '')")
        mariadb.query(f"KILL {tx.query('SELECT CONNECTION_ID()')[0][0]}")
        tx.execute("INSERT INTO setting (name, content) VALUES ('other half', '')")
    with store.transaction() as tx:
        assert tx.query("SELECT COUNT(*) FROM setting") == [(0,)]


def test_mariadb_gone_and_back(opened: Callable[..., Store], mariadb: MariadbServer) -> None:
    store = opened(mariadb.fresh_database())
    use(store)
    mariadb.stop()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            use(store)
    mariadb.start()
    use(store)


def test_mariadb_that_accepts_and_says_nothing(
    opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("MySQLdb")
    monkeypatch.setattr("collector.store.mysql._CONNECT_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            use(opened(f"mysql://root@127.0.0.1:{silent.getsockname()[1]}/x"))
        assert time.monotonic() - began < 10


def test_mariadb_ends_a_transaction_whose_client_stands_still(
    opened: Callable[..., Store], mariadb: MariadbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its locks would hold up all others for hours."""
    monkeypatch.setattr("collector.store.mysql._IDLE_TRANSACTION", 1)
    url = mariadb.fresh_database()
    frozen, other = opened(url), opened(url)
    upgrade(frozen, lambda: 1)
    done = threading.Event()
    with other.transaction() as tx:
        tx.execute("INSERT INTO setting (name, content) VALUES ('a', '0')")

    def write() -> None:
        with other.transaction() as tx:
            tx.execute("UPDATE setting SET content = '2' WHERE name = 'a'")
        done.set()

    def stand_still() -> None:
        with frozen.transaction() as tx:
            tx.execute("UPDATE setting SET content = '1' WHERE name = 'a'")
            thread.start()
            assert done.wait(4)

    thread = threading.Thread(target=write)
    with pytest.raises(StoreUnavailable):
        stand_still()
    thread.join()


def test_mariadb_tells_the_time_without_a_zone(opened: Callable[..., Store]) -> None:
    """In a zone with summer time its clock would jump by an hour, twice in one autumn night."""
    with MariadbServer("--default-time-zone=+05:00") as server:
        store = opened(server.fresh_database())
        with store.transaction() as tx:
            assert tx.query("SELECT @@session.time_zone")[0][0] == "+00:00"
            assert abs(int(tx.query(f"SELECT {tx.dialect.clock_expression}")[0][0]) / 1000 - time.time()) < 60
