"""What may wait between admission and commit, whoever goes away meanwhile."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractContextManager

from collector.core.rules import RuleSet
from collector.ingest.door import Door
from collector.ingest.gate import Gate
from collector.store.errors import StoreUnavailable
from collector.store.store import Store, Transaction
from tests.collector.fleet import record


class AwayStore:
    """A database that cannot be reached until it is `back`."""

    def __init__(self, store: Store):
        self._store = store
        self.back = threading.Event()

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Transaction]:
        if not self.back.is_set():
            raise StoreUnavailable("away")
        return self._store.transaction(write=write)


def test_streams_that_end_during_an_outage_leave_no_backlog_behind(store: Store) -> None:
    """Agents give up and come back again and again; what they left here is bounded all the same."""
    asyncio.run(_give_up_and_come_back(store))


async def _give_up_and_come_back(store: Store) -> None:
    limit = 20
    away = AwayStore(store)
    door = Door(
        away,  # type: ignore[arg-type]
        lambda: RuleSet(()),
        lambda: 1,
        lambda error: None,
        writers=1,
        batch_reports=10,
        linger=0.0,
        queue_reports=limit,
    )
    door.start()
    for _ in range(5):
        hellos = [asyncio.create_task(door.register(record(), 1, 1)) for _ in range(limit)]
        await asyncio.sleep(0)
        for hello in hellos:
            hello.cancel()
        await asyncio.gather(*hellos, return_exceptions=True)
    assert door.gate.pending == limit
    assert door.gate.is_closed
    away.back.set()
    async with asyncio.timeout(20):
        await door.register(record(), 1, 1)
        await door.gate.wait_open()
    assert await door.close(20)
    assert door.gate.pending == 0
    with store.transaction(write=False) as tx:
        assert tx.query("SELECT COUNT(*) FROM host") == [(limit + 1,)]


def test_who_stops_waiting_for_the_gate_is_forgotten_and_holds_up_nobody() -> None:
    asyncio.run(_stop_waiting())


async def _stop_waiting() -> None:
    gate = Gate(10)
    await gate.enter(6)
    large = asyncio.create_task(gate.enter(9))
    small = asyncio.create_task(gate.enter(4))
    await asyncio.sleep(0)
    assert not gate.try_enter(1), "first come, first served"
    large.cancel()
    async with asyncio.timeout(5):
        await small
    assert gate.pending == 10
    gate.leave(10)
    assert gate.pending == 0
    assert gate.try_enter(10)


def test_who_is_let_in_and_leaves_in_the_same_moment_is_counted_off() -> None:
    asyncio.run(_leave_at_once())


async def _leave_at_once() -> None:
    gate = Gate(10)
    await gate.enter(10)
    waiting = asyncio.create_task(gate.enter(5))
    await asyncio.sleep(0)
    gate.leave(10)
    assert gate.pending == 5
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert gate.pending == 0
