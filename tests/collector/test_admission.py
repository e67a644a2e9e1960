"""What may wait between admission and commit, whoever goes away meanwhile."""

from __future__ import annotations

import asyncio
import threading
import weakref
from contextlib import AbstractContextManager

import pytest

from collector.core.pacer import Pacer
from collector.core.rules import RuleSet
from collector.ingest.conversation import Conversation, Surroundings
from collector.ingest.door import Door
from collector.ingest.gate import Gate
from collector.ingest.inbox import Inbox
from collector.ingest.items import Rejudgement, Submission
from collector.ingest.refusals import Refusals
from collector.ingest.sessions import Session
from collector.ingest.writers import Writers
from collector.store.errors import StoreUnavailable
from collector.store.store import Store, Transaction
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import CheckKey, CheckLayout, Layout, Measurement, Report
from tests.collector.fleet import record


class AwayStore:
    """A database that cannot be reached until it is `back`."""

    def __init__(self, store: Store):
        self._store = store
        self.back = threading.Event()
        self.tries = 0

    def transaction(self, *, write: bool = True) -> AbstractContextManager[Transaction]:
        self.tries += 1
        if not self.back.is_set():
            raise StoreUnavailable("away")
        return self._store.transaction(write=write)


def open_door(store: object, *, queue_reports: int) -> tuple[Door, Writers]:
    writers = Writers(
        store,  # type: ignore[arg-type]
        lambda: RuleSet(()),
        lambda: 1,
        lambda error: None,
        number=1,
        batch_reports=10,
        linger=0.0,
    )
    writers.start()
    return Door(writers, queue_reports), writers


def test_streams_that_end_during_an_outage_leave_no_backlog_behind(store: Store) -> None:
    """Agents give up and come back again and again; the writer has at most the batch that it is at."""
    asyncio.run(_give_up_and_come_back(store))


async def _give_up_and_come_back(store: Store) -> None:
    limit = 20
    away = AwayStore(store)
    door, writers = open_door(away, queue_reports=limit)
    for _ in range(5):
        hellos = [asyncio.create_task(door.register(record(), 1, 1)) for _ in range(limit)]
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while not away.tries:  # noqa: ASYNC110 - the writer has taken its first batch
                await asyncio.sleep(0.001)
        for hello in hellos:
            hello.cancel()
        await asyncio.gather(*hellos, return_exceptions=True)
        assert 0 < door.gate.pending <= 10
    assert not door.gate.is_closed
    away.back.set()
    async with asyncio.timeout(20):
        await door.register(record(), 1, 1)
    assert await asyncio.to_thread(writers.close, 20)
    await asyncio.sleep(0)
    assert door.gate.pending == 0
    with store.transaction(write=False) as tx:
        # The Hello of a stream that has ended has no effect: a later one may have said something else.
        assert tx.query("SELECT COUNT(*) FROM host") == [(1,)]


def test_who_leaves_in_the_moment_of_coming_is_counted_off() -> None:
    """Before the writer's inbox has it, and before the writer looks into that."""
    asyncio.run(_leave_at_the_door())


async def _leave_at_the_door() -> None:
    door, writers = open_door(AwayStore(None), queue_reports=20)  # type: ignore[arg-type] - it needs no pool
    task = asyncio.create_task(door.register(record(), 1, 1))
    asyncio.get_running_loop().call_soon(task.cancel)  # before the flush that the task asks for
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert door.gate.pending == 0
    await asyncio.to_thread(writers.close, 0.1)


def test_what_does_not_fit_in_yet_is_not_decoded() -> None:
    """Thousands of messages may wait at once, and decoded they take up more memory."""
    asyncio.run(_wait_with_nonsense())


async def _wait_with_nonsense() -> None:
    door, writers = open_door(AwayStore(None), queue_reports=10)  # type: ignore[arg-type] - it needs no pool
    await door.gate.enter(7)
    never_announced = Layout((CheckLayout(CheckKey("load"), (Measurement("system.cpu.load", "1"),)),))
    reports = [convert.encode_report(Report(seq, 1, never_announced, (0.5,))) for seq in range(1, 6)]
    message = convert.encode_batch(reports).SerializeToString()
    around = Surroundings(
        door, lambda: 1, 50, Pacer(100, 1000), Refusals(), weakref.WeakValueDictionary(), None, 1.0
    )

    class Context:
        async def read(self) -> bytes:
            return message

    async def talk() -> None:
        task = asyncio.current_task()
        assert task is not None
        session = Session(record(), 1, 1, lambda _: asyncio.sleep(0), task)
        await Conversation(session, Context(), around).run()  # type: ignore[arg-type] - as much of a context as it uses

    stream = asyncio.create_task(talk())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stream.done()
    door.gate.leave(7)
    with pytest.raises(WireError, match="not announced"):
        await stream
    assert door.gate.pending == 0
    await asyncio.to_thread(writers.close, 0.1)


def test_what_is_committed_is_not_kept_until_the_agent_reads_its_ack() -> None:
    """The gate has counted it off by then, so nothing else would bound what deaf agents take up."""
    asyncio.run(_commit_for_a_deaf_agent())


async def _commit_for_a_deaf_agent() -> None:
    layout = Layout((CheckLayout(CheckKey("load"), (Measurement("system.cpu.load", "1"),)),))
    batch = convert.encode_batch([convert.encode_report(Report(1, 1, layout, (0.5,)))])
    said = [convert.encode_layout(layout).SerializeToString(), batch.SerializeToString()]
    acking = asyncio.Event()
    submitted: list[weakref.ref[object]] = []

    class CommittingDoor:
        gate = Gate(10)

        async def submit(self, *arguments: object, is_admitted: bool) -> int:
            assert is_admitted
            [report] = arguments[3]  # type: ignore[misc] - the reports
            submitted.append(weakref.ref(report.values))
            return 1

    class Context:
        async def read(self) -> bytes:
            return said.pop(0)

    async def is_not_read(_: object) -> None:
        acking.set()
        await asyncio.Event().wait()

    async def talk() -> None:
        task = asyncio.current_task()
        assert task is not None
        session = Session(record(), 1, 1, is_not_read, task)
        await Conversation(session, Context(), around).run()  # type: ignore[arg-type] - as much of a context as it uses

    around = Surroundings(
        CommittingDoor(),  # type: ignore[arg-type] - as much of a door as it uses
        lambda: 1,
        50,
        Pacer(100, 1000),
        Refusals(),
        weakref.WeakValueDictionary(),
        None,
        1.0,
    )
    stream = asyncio.create_task(talk())
    async with asyncio.timeout(20):
        await acking.wait()
    assert [values() for values in submitted] == [None]
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)


def test_a_withdrawn_item_is_not_taken_and_the_others_keep_their_order() -> None:
    inbox = Inbox()
    items = [Rejudgement([(number, "")]) for number in range(4)]
    inbox.put(items)
    assert inbox.withdraw(items[1])
    assert inbox.take(2, 0) == [items[0], items[2]]
    assert not inbox.withdraw(items[0])
    assert inbox.withdraw(items[3])
    inbox.close()
    assert inbox.take(2, 0) is None


def test_a_large_item_is_not_taken_together_with_others() -> None:
    """A transaction that takes long holds up as few as possible."""
    inbox = Inbox()
    large = Submission(1, "", "", 1, (), None, 1, None, weight=50)  # type: ignore[arg-type] - nobody waits for it
    small = [Rejudgement([(number, "")]) for number in range(3)]
    inbox.put([small[0], large, *small[1:]])
    assert [inbox.take(10, 0) for _ in range(3)] == [[small[0]], [large], small[1:]]


def test_the_gate_closes_at_four_fifths_and_opens_below_three() -> None:
    """Or agents would be asked to pause and to go on by turns."""

    async def fill_and_empty() -> None:
        gate = Gate(10)
        assert gate.try_enter(7)
        assert not gate.is_closed
        assert gate.try_enter(1)
        assert gate.is_closed
        gate.leave(2)
        assert gate.is_closed
        gate.leave(1)
        assert not gate.is_closed
        assert gate.try_enter(2)
        assert not gate.is_closed

    asyncio.run(fill_and_empty())


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


def test_two_loops_share_the_writers_and_each_counts_its_own(store: Store) -> None:
    """Reports over SSH are admitted in a loop of their own, by the same writers."""
    asyncio.run(_use_two_loops(store))


async def _use_two_loops(store: Store) -> None:
    door, writers = open_door(store, queue_reports=20)
    other: list[int] = []

    async def elsewhere() -> None:
        second = Door(writers, 20)
        await second.register(record("two"), 1, 1)
        other.append(second.gate.pending)

    await asyncio.to_thread(asyncio.run, elsewhere())
    await door.register(record("one"), 1, 1)
    assert other == [door.gate.pending] == [0]
    assert await asyncio.to_thread(writers.close, 20)
