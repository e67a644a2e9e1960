"""At most so many connections, and never one in two hands: by the server's own word."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from collector.store.errors import StoreError, StoreUnavailable
from collector.store.store import Store, open_store
from tests.faults import Kill, Pause
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import wait_until


@contextmanager
def held_elsewhere(store: Store) -> Iterator[object]:
    """Another thread holds a connection meanwhile; what the server calls that."""
    identify = "SELECT CONNECTION_ID()" if store.dialect.name == "mysql" else "SELECT 1"
    answer: Future[object] = Future()
    release = threading.Event()

    def hold() -> None:
        with store.transaction(write=False) as tx:
            answer.set_result(tx.query(identify)[0][0])
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield answer.result(20)
    finally:
        release.set()
        thread.join()


def test_waiting_for_a_connection_ends(database_url: str) -> None:
    store = open_store(database_url, pool_size=1, pool_timeout=0.1, create=True)
    with held_elsewhere(store):
        began = time.monotonic()
        with (
            pytest.raises(StoreUnavailable, match=r"within 0\.1 s \(pool of 1\)"),
            store.transaction(write=False),
        ):
            pytest.fail("there is only one connection")
        assert 0.1 <= time.monotonic() - began < 5
    with store.transaction(write=False):
        pass
    stats = store.pool_stats
    assert (stats.size, stats.in_use, stats.checkouts, stats.waits, stats.timeouts) == (1, 0, 2, 1, 1)
    assert stats.wait_time >= 0.1
    store.close()


def test_a_waiter_gets_the_connection_that_is_returned(database_url: str) -> None:
    store = open_store(database_url, pool_size=1, pool_timeout=30, create=True)
    got = threading.Event()

    def wait_for_it() -> None:
        with store.transaction(write=False):
            got.set()

    with store.transaction(write=False):
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        deadline = time.monotonic() + 10
        while not store._pool._free._queue and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not got.is_set()
    thread.join(10)
    assert got.is_set()
    store.close()


FORK = """
import os, sys
from collector.store.store import Store, open_store
store = open_store(sys.argv[1], pool_size=1, create=True)
def use():
    with store.transaction(write=False) as tx:
        return tx.query("SELECT 1")
use()
child = os.fork()
if not child:
    try:
        use()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(use())
"""


def test_a_forked_child_is_refused(database_url: str) -> None:
    # In a process of its own, because this one has threads.
    ran = subprocess.run(
        [sys.executable, "-c", FORK, database_url], capture_output=True, text=True, timeout=60, check=True
    )
    refusal, parents_answer = ran.stdout.splitlines()
    assert "forked process" in refusal
    assert parents_answer == "[(1,)]"  # the parent's connection still works


def test_no_more_connections_than_the_pools_size(mariadb: MariadbServer) -> None:
    """Threads, errors and killed connections: the server never sees more than the pool's size."""
    size = 3
    url = mariadb.fresh_database()
    mariadb.query("CREATE OR REPLACE USER pool@localhost")
    mariadb.query(f"GRANT ALL ON *.* TO pool@localhost WITH MAX_USER_CONNECTIONS {size}")
    store = open_store(url.replace("root@", "pool@"), pool_size=size, pool_timeout=30)
    in_hand: dict[int, int] = {}
    lock = threading.Lock()
    problems: list[str] = []

    def fail_halfway() -> None:
        raise ValueError

    def work(number: int) -> None:
        for turn in range(12):
            try:
                with store.transaction() as tx:
                    connection = tx.query("SELECT CONNECTION_ID()")[0][0]
                    with lock:
                        if connection in in_hand:
                            problems.append(f"{connection} is in two hands")
                        in_hand[connection] = number
                    assert tx.query("SELECT %s, CONNECTION_ID()", (number,)) == [(number, connection)]
                    with lock:
                        del in_hand[connection]
                    if turn % 4 == 0:
                        tx.query("SELEKT")
                    if turn % 6 == 5:
                        tx.query("KILL CONNECTION_ID()")
                    if turn % 4 == 2:
                        fail_halfway()
            except ValueError:
                continue
            except StoreError as error:
                if "1226" in str(error) or "1203" in str(error):
                    problems.append(str(error))

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert problems == []
    count = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE user = 'pool'"
    with ExitStack() as stack:
        # One is kept for replacing what is lost.
        ids = {stack.enter_context(held_elsewhere(store)) for _ in range(size - 1)}
        assert len(ids) == size - 1
        # What a thread has killed at its end is taken off the list a little later.
        wait_until(lambda: mariadb.query(count) == [(size - 1,)])
    store.close()
    wait_until(lambda: mariadb.query(count) == [(0,)])


def test_a_new_store_connects_only_when_used(mariadb: MariadbServer) -> None:
    before = mariadb.status("Connections")
    store = open_store(mariadb.fresh_database(), pool_size=8)
    # One for each question asked here; none for the store.
    assert mariadb.status("Connections") == before + 2
    store.close()


@pytest.mark.parametrize("size", [3, 8])
def test_the_server_never_counts_more_than_the_size(
    size: int, mariadb: MariadbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many threads as connections; killed ones, a server that stands still, and a restart."""
    monkeypatch.setattr("collector.store.mysql._IO_TIMEOUT", 1)
    url = mariadb.fresh_database()
    database = database_of(url)
    # Its own word for the moments that are not looked at: whoever comes too many is turned away.
    account = mariadb.account(url, connections=size)
    admin = mariadb.connect()
    others = "FROM information_schema.PROCESSLIST WHERE user = 'root' AND id <> CONNECTION_ID()"
    for (connection,) in ask(admin, f"SELECT id {others}"):  # what an earlier test forgot
        ask(admin, "KILL %s", connection)
    alone = (("Threads_connected", "1"),)
    wait_until(lambda: tuple(ask(admin, "SHOW STATUS LIKE 'Threads_connected'")) == alone)
    ask(admin, "FLUSH STATUS")
    store = open_store(account, pool_size=size, pool_timeout=1, patient=True)
    with busy_threads(store, 2 * size, "SELECT SLEEP(0.01)") as done:  # long enough to need them all
        for _ in range(10):
            for (connection,) in ask(
                admin, "SELECT id FROM information_schema.PROCESSLIST WHERE db = %s", database
            ):
                with suppress(Exception):  # it may be gone by itself
                    ask(admin, "KILL %s", connection)
            done.wait_for(2 * size)
        with Pause(mariadb, database):
            done.wait_for_errors(2 * size)  # everyone has given up at least once
        done.wait_for(100)
        ((_, most),) = ask(admin, "SHOW GLOBAL STATUS LIKE 'Max_used_connections'")
        assert size - 1 <= int(most) - 1 <= size  # one is ours
        with Kill(mariadb, database):
            done.wait_for_errors(2 * size)
        done.wait_for(100)
    assert not [text for text in done.errors if "max_user_connections" in text]
    stats = store.pool_stats
    assert stats.connects - (size - 1) == stats.reconnects >= 2 * (size - 1)
    assert stats.in_use == 0
    assert stats.longest_use == 0
    store.close()
    admin.close()


def test_a_server_that_keeps_what_was_given_up_gets_no_more_connections_for_it(
    mariadb: MariadbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose disk hangs: it does not notice for seconds that its client has left."""
    monkeypatch.setattr("collector.store.mysql._IO_TIMEOUT", 1)
    store = open_store(mariadb.account(mariadb.fresh_database(), connections=4), pool_size=4, pool_timeout=1)
    with busy_threads(store, 6, "SELECT SLEEP(4)") as done:
        wait_until(
            lambda: sum("were given up" in text for text in done.errors) > 10,
            what="the pool to be full of them",
        )

    def usable() -> bool:
        try:
            with store.transaction() as tx:
                return bool(tx.query("SELECT 1"))
        except StoreUnavailable:
            return False

    wait_until(usable, what="the server to have noticed")
    assert not [text for text in done.errors if "max_user_connections" in text]
    store.close()


class Done:
    """What busy threads have done so far."""

    def __init__(self) -> None:
        self.transactions = 0
        self.errors: list[str] = []

    def wait_for(self, more: int) -> None:
        target = self.transactions + more
        wait_until(lambda: self.transactions >= target, what=f"{more} more transactions")

    def wait_for_errors(self, more: int) -> None:
        target = len(self.errors) + more
        wait_until(lambda: len(self.errors) >= target, what=f"{more} more errors")


@contextmanager
def busy_threads(store: Store, number: int, statement: str = "SELECT 1") -> Iterator[Done]:
    """Threads that use the store all the time, and try again after an error."""
    done, stopping = Done(), threading.Event()

    def work() -> None:
        while not stopping.is_set():
            try:
                with store.transaction() as tx:
                    tx.query(statement)
                done.transactions += 1
            except StoreError as error:
                done.errors.append(str(error))
                stopping.wait(0.02)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def ask(connection: Any, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Every row of an answer, on a connection that stays open: a new one would be counted too."""
    cursor = connection.cursor()
    cursor.execute(statement, parameters)
    return list(cursor.fetchall())


def test_no_more_connections_are_open_than_are_needed_at_once(database_url: str) -> None:
    store = open_store(database_url, pool_size=8, create=True)
    for _ in range(20):
        with held_elsewhere(store):
            pass
    assert store.pool_stats.connects == 1
    with held_elsewhere(store), held_elsewhere(store):
        pass
    assert store.pool_stats.connects == 2
    store.close()


def test_no_thread_holds_two(database_url: str) -> None:
    store = open_store(database_url, pool_size=4, create=True)
    with store.transaction(write=False) as tx:
        with pytest.raises(RuntimeError, match="holds a connection of the pool already"), store.transaction():
            pytest.fail("the second could wait for the first for ever")
        assert tx.query("SELECT 1") == [(1,)]
    with store.transaction(write=False):
        pass
    store.close()


def test_one_thread_at_a_time_connects_to_a_server_that_says_nothing() -> None:
    pytest.importorskip("MySQLdb")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        url = f"mysql://root@127.0.0.1:{silent.getsockname()[1]}/x"
        store = open_store(url, pool_size=8, pool_timeout=0.1, patient=True)
        with busy_threads(store, 4) as done:
            connection, _ = silent.accept()
            done.wait_for_errors(9)  # three threads are turned away again and again
            silent.setblocking(False)
            with pytest.raises(BlockingIOError):
                silent.accept()
            connection.close()
            silent.close()
    assert all("another thread has been connecting" in error for error in done.errors[:9])
    store.close()


def test_a_connection_that_the_server_cut_while_it_was_idle_is_replaced_unnoticed(
    mariadb: MariadbServer,
) -> None:
    store = open_store(mariadb.fresh_database(), pool_size=4)
    with store.transaction() as tx:
        tx.execute("SET SESSION wait_timeout = 1")
        ((number,),) = tx.query("SELECT CONNECTION_ID()")
    still_there = "SELECT 1 FROM information_schema.PROCESSLIST WHERE id = %s"
    wait_until(lambda: not mariadb.query(still_there, (number,)), what="the server to cut it")
    with store.transaction() as tx:
        assert tx.query("SELECT CONNECTION_ID()") != [(number,)]
    assert (store.pool_stats.connects, store.pool_stats.reconnects) == (2, 1)
    store.close()
