"""The failures of the script that forked a process for each part of the fleet: why none can happen here.

Where it helps, the failure is first brought about with the driver alone, as that script did it.
"""

from __future__ import annotations

import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from collector.store.errors import StoreUnavailable
from collector.store.store import Store, Transaction, open_store
from tests.mariadb_server import MariadbServer


def in_another_thread(task: Callable[[], object]) -> object:
    """What a task returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(task).result(20)


# --- A pool that was inherited over fork ---

INHERITED_BY_THE_DRIVER = """
import os, sys, MySQLdb
connection = MySQLdb.connect(unix_socket=sys.argv[1], user="root")
child = os.fork()
if not child:
    connection.close()  # or the interpreter does, at the end of the child
    os._exit(0)
os.waitpid(child, 0)
try:
    connection.query("SELECT 1")
except MySQLdb.Error as error:
    print(error.args[0])
"""

INHERITED_BY_THE_STORE = """
import os, sys
from collector.store.store import open_store

def numbers():
    with store.transaction(write=False) as tx:
        return tx.query("SELECT CONNECTION_ID()")

store = open_store(sys.argv[1], pool_size=1)
before = numbers()
child = os.fork()
if not child:
    try:
        numbers()
    except RuntimeError as error:
        print(error, flush=True)
    store.close()
    del store
    own = open_store(sys.argv[1], pool_size=1)
    with own.transaction(write=False) as tx:
        print(tx.query("SELECT CONNECTION_ID()") != before, flush=True)
    own.close()
    sys.exit()  # the interpreter closes everything
os.waitpid(child, 0)
print(numbers() == before)
"""


def run_script(script: str, argument: str) -> list[str]:
    # A process of its own forks, because this one has threads.
    done = subprocess.run(
        [sys.executable, "-c", script, argument], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_a_pool_inherited_over_fork_cannot_be_used_or_closed_under_its_owner(mariadb: MariadbServer) -> None:
    assert run_script(INHERITED_BY_THE_DRIVER, mariadb.socket)[0] in ("2006", "2013")
    refusal, childs_own_works, parents_works = run_script(INHERITED_BY_THE_STORE, mariadb.fresh_database())
    assert "cannot be used in a forked process" in refusal
    assert childs_own_works == "True"
    assert parents_works == "True"


# --- A connection that another task closed ---


def test_a_connection_cannot_be_closed_under_another_task(mariadb: MariadbServer) -> None:
    shared = mariadb.connect()
    cursor = shared.cursor()
    cursor.execute("SELECT 1")
    in_another_thread(shared.close)  # "I am done with it"
    with pytest.raises(Exception, match=r"2006|closed|^$"):
        shared.cursor().execute("SELECT 1")

    store = open_store(mariadb.fresh_database(), pool_size=3)
    with store.transaction(write=False) as tx:
        before = tx.query("SELECT CONNECTION_ID()")
        in_another_thread(store.close)  # whoever closes the pool closes what is idle in it
        in_another_thread(lambda: use(store))  # whoever has finished gives back what is their own
        assert tx.query("SELECT CONNECTION_ID()") == before
    store.close()


def use(store: Store) -> list[Any]:
    with store.transaction(write=False) as tx:
        return tx.query("SELECT 1")


# --- One connection in the hands of two workers ---


TWO_WORKERS = """
import sys, threading, MySQLdb
connection = MySQLdb.connect(unix_socket=sys.argv[1], user="root")
begin = threading.Barrier(2)

def work(number):
    begin.wait()
    try:
        for _ in range(2_000):
            cursor = connection.cursor()
            cursor.execute("SELECT %s", (number,))
            if cursor.fetchall() != ((number,),):
                print("another's answer")
                return
    except Exception as error:
        print(type(error).__name__)

threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in (1, 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(5)
"""


def test_one_connection_cannot_be_used_by_two_workers(mariadb: MariadbServer) -> None:
    # What happens is the driver's and the moment's choice: an error, an answer to the other's question,
    # a wait without end, or a crash.
    began = time.monotonic()
    script = [sys.executable, "-c", TWO_WORKERS, mariadb.socket]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout or done.returncode or time.monotonic() - began > 5

    store = open_store(mariadb.fresh_database(), pool_size=3)
    uses: list[Callable[[Transaction], object]] = [
        lambda tx: tx.query("SELECT 1"),
        lambda tx: tx.query_in("SELECT 1 FROM DUAL WHERE 1 IN (%s)", (1,)),
        lambda tx: tx.execute("DO 1"),
        lambda tx: tx.execute_many("DO %s", [(1,)]),
        lambda tx: tx.cursor,
    ]
    with store.transaction() as tx:
        for forbidden in uses:
            with pytest.raises(RuntimeError, match="belongs to another thread"):
                in_another_thread(lambda use=forbidden: use(tx))  # type: ignore[misc]
        assert tx.query("SELECT 1") == [(1,)]
    for forbidden in uses:
        with pytest.raises(RuntimeError, match="has ended"):
            forbidden(tx)
    store.close()


def test_a_transaction_that_failed_cannot_be_used_either(store: Store) -> None:
    with pytest.raises(ValueError, match="halfway"), store.transaction() as tx:  # noqa: PT012
        tx.query("SELECT 1")
        raise ValueError("halfway")
    with pytest.raises(RuntimeError, match="has ended"):
        tx.query("SELECT 1")


def test_that_costs_a_statement_less_than_a_microsecond() -> None:
    tx = Transaction(None, object())  # type: ignore[arg-type]
    repeats = 20_000
    best = min(timeit.repeat(lambda: tx.cursor, number=repeats, repeat=20)) / repeats
    assert best < 1e-6


# --- More connections than the pool says ---


def test_two_pools_where_one_was_meant_are_noticed_before_the_database_is_full(
    mariadb: MariadbServer,
) -> None:
    """A worker that holds one connection and asks for another is how pools deadlock, or grow."""
    store = open_store(mariadb.fresh_database(), pool_size=3)

    def nested() -> None:
        with store.transaction(), store.transaction():
            pytest.fail("one thread has two connections")

    with pytest.raises(RuntimeError, match="may have only one"):
        in_another_thread(nested)
    assert use(store) == [(1,)]
    store.close()


def test_two_hundred_workers_make_no_more_connections_than_the_pool_says(mariadb: MariadbServer) -> None:
    size, workers = 3, 200
    url = mariadb.fresh_database()

    crowd = mariadb.account(url, "crowd", connections=size)
    refused = []

    def like_the_script(_: int) -> None:
        try:
            connection = mariadb.connect(user=crowd.partition("//")[2].partition("@")[0])
            connection.cursor().execute("SELECT SLEEP(0.05)")
            connection.close()
        except Exception as error:  # noqa: BLE001 - the driver's
            refused.append(str(error))

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(like_the_script, range(10)))
    assert any("max_user_connections" in text for text in refused)

    store = open_store(mariadb.account(url, connections=size), pool_size=size, pool_timeout=60)
    failed: list[str] = []

    def work(_: int) -> None:
        try:
            use(store)
        except StoreUnavailable as error:
            failed.append(str(error))

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, range(5 * workers)))
    assert failed == []
    assert store.pool_stats.checkouts == 5 * workers
    assert store.pool_stats.connects <= size - 1
    store.close()
