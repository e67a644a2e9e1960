from __future__ import annotations

import threading
from statistics import median

import pytest

from collector.store.errors import StoreLocked
from collector.store.store import Store
from collector.store.turns import Turns
from tests.processes import wait_until


def test_first_come_first_served() -> None:
    turns, served = Turns(), []

    def come(number: int) -> None:
        with turns.take(10):
            served.append(number)

    with turns.take(1):
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=come, args=(number,)))
            threads[-1].start()
            wait_until(lambda number=number: len(turns._queue) == number + 1)
        assert served == []
    for thread in threads:
        thread.join()
    assert served == [0, 1, 2, 3, 4]


def test_waiting_ends_and_holds_nobody_up() -> None:
    turns = Turns()
    with turns.take(1):
        with pytest.raises(StoreLocked, match=r"more than 0\.01 s"), turns.take(0.01):
            pass
        waiting = threading.Thread(target=lambda: turns.take(10).__enter__())
        waiting.start()
        wait_until(lambda: len(turns._queue) == 1)
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_writer_that_never_rests_keeps_nobody_waiting(store: Store) -> None:
    stopping = threading.Event()
    written = [0]

    def write_on() -> None:
        while not stopping.is_set():
            with store.transaction() as tx:
                tx.execute("UPDATE setting SET content = %s WHERE name = %s", (str(written[0]), "busy"))
                tx.query("SELECT COUNT(*) FROM setting a, setting b, setting c")
            written[0] += 1

    with store.transaction() as tx:
        for number in range(80):
            tx.execute("INSERT INTO setting (name, content) VALUES (%s, %s)", (f"n{number}", "x"))
    busy = threading.Thread(target=write_on)
    busy.start()
    try:
        wait_until(lambda: written[0] > 2)
        written_meanwhile = []
        for _ in range(10):
            before = written[0]
            with store.transaction() as tx:
                tx.execute("UPDATE setting SET content = %s WHERE name = %s", ("y", "n1"))
            written_meanwhile.append(written[0] - before)
    finally:
        stopping.set()
        busy.join()
    # This thread may be held up itself now and then, but not most of the time.
    assert median(written_meanwhile) <= 3
