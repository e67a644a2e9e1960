"""At most so many connections, and never one in two hands: by the server's own word."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from collector.store.errors import StoreError, StoreUnavailable
from collector.store.store import open_store
from tests.mariadb_server import MariadbServer


def test_waiting_for_a_connection_ends(database_url: str) -> None:
    store = open_store(database_url, pool_size=1, pool_timeout=0.1, create=True)
    with store.transaction(write=False):
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
        while not store._pool._free._cond._waiters and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.001)
        assert not got.is_set()
    thread.join(10)
    assert got.is_set()
    store.close()


FORK = """
import os, sys
from collector.store.store import open_store
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
    with ExitStack() as stack:
        ids = {
            stack.enter_context(store.transaction()).query("SELECT CONNECTION_ID()")[0][0]
            for _ in range(size)
        }
        assert len(ids) == size
        assert mariadb.query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE user = 'pool'") == [
            (size,)
        ]
    store.close()
    deadline = time.monotonic() + 10
    while mariadb.query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE user = 'pool'") != [(0,)]:
        assert time.monotonic() < deadline


def test_a_new_store_connects_only_when_used(mariadb: MariadbServer) -> None:
    before = mariadb.status("Connections")
    store = open_store(mariadb.fresh_database(), pool_size=8)
    # One for each question asked here; none for the store.
    assert mariadb.status("Connections") == before + 2
    store.close()
