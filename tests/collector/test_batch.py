"""Batches on a real database: large ones, and two collectors with the same hosts."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from collector.core.rules import Plan, RuleSet
from collector.core.status import HostRecord
from collector.ingest.batch import Answer, BatchWriter
from collector.ingest.items import EpochOver, Item, Registered, Registration, Submission
from collector.store.errors import StoreConflict
from collector.store.schema import upgrade
from collector.store.store import Store, Transaction, open_store
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, Report, State
from tests.collector.fleet import record
from tests.mariadb_server import MariadbServer

NO_RULES = RuleSet(())
SMALL = Layout((CheckLayout(CheckKey("c"), (Measurement("m", "1"),)),))


class PausingStore:
    """A store whose transactions wait for `go_on` just before they commit or write anything new."""

    def __init__(self, store: Store, pause: Callable[[], None]):
        self._store = store
        self._pause = pause

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        with self._store.transaction(write=write) as tx:
            yield _PausingTransaction(tx, self._pause)  # type: ignore[misc]


class _PausingTransaction(Transaction):
    """Pauses after its first query: what was read is then older than what is written."""

    def __init__(self, tx: Transaction, pause: Callable[[], None]):
        super().__init__(tx.dialect, tx.cursor)
        self._pause: Callable[[], None] | None = pause

    def query_in(self, statement, values, *, chunk=500):  # type: ignore[no-untyped-def]
        rows = super().query_in(statement, values, chunk=chunk)
        pause, self._pause = self._pause, None
        if pause is not None:
            pause()
        return rows


@pytest.fixture
def mariadb_store(mariadb: MariadbServer) -> Iterator[Store]:
    store = open_store(mariadb.fresh_database(), pool_size=4)
    upgrade(store, lambda: 1)
    yield store
    store.close()


def registration(identity: HostRecord) -> Registration:
    return Registration(identity, 1, 1_000, _nobody_waits())


def submission(host: Registered, identity: HostRecord, *reports: Report, facts=None) -> Submission:
    return Submission(
        host.host, identity.hostname, identity.instance, 1, reports, facts, 1_000, _nobody_waits()
    )


def _nobody_waits() -> asyncio.Future:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop.create_future()


def writer(store: object) -> BatchWriter:
    return BatchWriter(store, lambda: NO_RULES, lambda: 1_000)  # type: ignore[arg-type]


def count_events(store: Store) -> dict[str, int]:
    with store.transaction(write=False) as tx:
        return Counter(kind for (kind,) in tx.query("SELECT kind FROM event"))


def test_a_batch_of_large_reports_fits_into_the_servers_packets(mariadb_store: Store) -> None:
    """More than max_allowed_packet in one statement cuts the connection: an outage without end."""
    batches = writer(mariadb_store)
    wide = Layout((CheckLayout(CheckKey("c"), tuple(Measurement(f"m{n}", "1") for n in range(20_000))),))
    fleet = [record(f"h{n}") for n in range(60)]
    hosts = batches.apply([registration(identity) for identity in fleet])
    report = Report(1, 1, wide, (0.5,) * 20_000)
    answers = batches.apply([submission(h, i, report) for h, i in zip(hosts, fleet, strict=True)])  # type: ignore[arg-type]
    assert answers == [1] * len(fleet)


def test_a_batch_of_many_events_fits_into_the_servers_packets(mariadb_store: Store) -> None:
    batches = writer(mariadb_store)
    talkative = Layout(tuple(CheckLayout(CheckKey(f"c{n}"), ()) for n in range(50)))
    reports = [
        Report(
            seq,
            1,
            talkative,
            (),
            tuple(CheckResult(n, State(seq % 2 + 1), "\x01" * 4096) for n in range(50)),
        )
        for seq in range(1, 61)
    ]
    identity = record()
    [host] = batches.apply([registration(identity)])
    assert batches.apply([submission(host, identity, *reports)]) == [60]  # type: ignore[arg-type]
    assert count_events(mariadb_store)["state"] == 50 * 60


def at_the_same_time(store: Store, items: Callable[[], Sequence[Item]]) -> None:
    """Two collectors apply the same; the second reads before the first writes, and repeats on conflict."""
    has_read, has_committed = threading.Event(), threading.Event()

    def pause() -> None:
        has_read.set()
        assert has_committed.wait(20)

    def late() -> None:
        batches = writer(PausingStore(store, pause))
        for _ in range(3):
            try:
                batches.apply(items())
            except StoreConflict:
                continue
            return

    second = threading.Thread(target=late)
    second.start()
    assert has_read.wait(20)
    writer(store).apply(items())
    has_committed.set()
    second.join(20)
    assert not second.is_alive()


def test_a_host_that_two_collectors_meet_at_once_is_added_once(mariadb_store: Store) -> None:
    fleet = [record("a"), record("b")]
    at_the_same_time(mariadb_store, lambda: [registration(identity) for identity in fleet])
    assert count_events(mariadb_store) == {"added": 2}


def test_a_reboot_that_two_collectors_hear_of_at_once_is_told_once(mariadb_store: Store) -> None:
    before = record()
    writer(mariadb_store).apply([registration(before)])
    after = dataclasses.replace(before, boot_id="another", groups=("lab",))
    at_the_same_time(mariadb_store, lambda: [registration(after)])
    assert count_events(mariadb_store) == {"added": 1, "reboot": 1}


def test_a_host_removed_while_it_says_hello_says_it_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks of one transaction, as the isolation level allows it; no defect, but a conflict."""
    identity = record()
    writer(store).apply([registration(identity)])
    monkeypatch.setattr("collector.ingest.batch.statuses.load_statuses", lambda tx, hosts: {})
    with pytest.raises(StoreConflict, match="removed while it said Hello"):
        writer(store).apply([registration(identity)])


def test_what_is_told_from_reading_is_committed_once_more(store: Store) -> None:
    """Others see a commit before it is safe on the disk; an ack must not rest on that."""
    identity = record()

    def version() -> int:
        with store.transaction(write=False) as tx:
            return int(tx.query("SELECT version FROM host_seen")[0][0])

    first, second = writer(store), writer(store)
    (host,) = first.apply([registration(identity)])
    report = Report(1, 1, SMALL, (1.0,))
    assert first.apply([submission(host, identity, report)]) == [1]
    committed = version()
    assert first.apply([submission(host, identity, report)]) == [1]
    assert version() == committed, "it knows its own commits"
    item = submission(host, identity, report)
    first.forget([item])  # as after a commit whose answer never came
    assert first.apply([item]) == [1]
    assert version() == committed + 1
    assert second.apply([registration(identity)]) == [Registered(host.host, 1, identity.hostname)]
    assert version() == committed + 2
    assert count_events(store)["state"] == 0


def wide(number: int) -> Layout:
    """Each character takes up four bytes, by one rare one in each name."""
    names = [f"{number}-{n}-".ljust(254, "m") + "\U0001f600" for n in range(5_000)]
    return Layout((CheckLayout(CheckKey("c"), tuple(Measurement(name, "1") for name in names)),))


def test_ever_new_layouts_are_forgotten_again_and_those_in_use_are_not(store: Store) -> None:
    """One host that changes its wide layout with every report must not fill the memory, nor harm others."""
    batches = writer(store)
    mine, others = record("h1"), record("h2")
    changing, steady = batches.apply([registration(mine), registration(others)])
    rules = RuleSet(())
    planned: list[Layout] = []

    class Counted(RuleSet):
        def plan(self, layout: Layout) -> Plan:
            planned.append(layout)
            return rules.plan(layout)

    counted = Counted(())
    batches = BatchWriter(store, lambda: counted, lambda: 1_000)
    seen = []
    for seq in range(1, 26):
        layout = wide(seq)
        seen.append(weakref.ref(layout))
        batches.apply(
            [
                submission(changing, mine, Report(seq, 1, layout, (0.5,) * 5_000)),  # type: ignore[arg-type]
                submission(steady, others, Report(seq, 1, SMALL, (0.5,))),  # type: ignore[arg-type]
            ]
        )
    assert planned.count(SMALL) == 1
    planned.clear()
    alive = [layout for known in seen if (layout := known()) is not None]
    assert 5 < len(alive) < 14, "64 MB of them"


# --- epochs ---


def spoken(host: Registered, identity: HostRecord, epoch: int, *seqs: int) -> Submission:
    """Reports of one epoch as a stream submits them."""
    reports = [Report(seq, 1, SMALL, (0.5,)) for seq in seqs]
    return Submission(
        host.host, identity.hostname, identity.instance, epoch, reports, None, 1_000, _nobody_waits()
    )


def hello(identity: HostRecord, epoch: int) -> Registration:
    return Registration(identity, epoch, 1_000, _nobody_waits())


def apply_repeatedly(batches: BatchWriter, items: Sequence[Item]) -> list[Answer]:
    """As a writer thread does when another collector wrote the same host."""
    try:
        return batches.apply(items)
    except StoreConflict:
        batches.forget(items)
        return batches.apply(items)


def test_a_report_stuck_in_one_collector_does_not_turn_back_the_epoch_begun_at_another(store: Store) -> None:
    """The mark of the new epoch would be lost, and what was delivered be taken again."""
    one, other = writer(store), writer(store)
    identity = record()
    [host] = one.apply([hello(identity, 7)])
    assert one.apply([spoken(host, identity, 7, 1)]) == [1]  # type: ignore[arg-type]
    stuck = spoken(host, identity, 7, 2)  # type: ignore[arg-type]
    # The agent loses its spool, and begins anew with another collector.
    assert other.apply([hello(identity, 8)]) == [Registered(host.host, 0, identity.hostname)]  # type: ignore[union-attr]
    assert other.apply([spoken(host, identity, 8, 1, 2, 3)]) == [3]  # type: ignore[arg-type]
    [answer] = apply_repeatedly(one, [stuck])
    assert isinstance(answer, EpochOver)
    assert apply_repeatedly(other, [spoken(host, identity, 8, 3, 4)]) == [4]  # type: ignore[arg-type]
    assert count_events(store) == {"added": 1, "new-epoch": 1}


def test_a_report_of_an_old_epoch_is_refused_before_the_new_one_has_reported(store: Store) -> None:
    one, other = writer(store), writer(store)
    identity = record()
    [host] = one.apply([hello(identity, 7)])
    one.apply([spoken(host, identity, 7, 1)])  # type: ignore[arg-type]
    other.apply([hello(identity, 8)])
    [answer] = apply_repeatedly(one, [spoken(host, identity, 7, 2)])  # type: ignore[arg-type]
    assert isinstance(answer, EpochOver)
    assert count_events(store) == {"added": 1}


def test_what_waits_in_one_batch_keeps_the_order_of_its_hellos(store: Store) -> None:
    batches = writer(store)
    identity = record()
    [host] = batches.apply([hello(identity, 7)])
    first, begun, late, second = batches.apply(
        [
            spoken(host, identity, 7, 1, 2),  # type: ignore[arg-type]
            hello(identity, 8),
            spoken(host, identity, 7, 3),  # type: ignore[arg-type]
            spoken(host, identity, 8, 1),  # type: ignore[arg-type]
        ]
    )
    assert (first, begun, second) == (2, Registered(host.host, 0, identity.hostname), 1)  # type: ignore[union-attr]
    assert isinstance(late, EpochOver)


def test_a_hello_whose_stream_has_ended_has_no_effect(store: Store) -> None:
    """It waited for the database while its agent was replaced; the next one's epoch stays."""
    batches = writer(store)
    identity = record()
    [host] = batches.apply([hello(identity, 8)])
    batches.apply([spoken(host, identity, 8, 1)])  # type: ignore[arg-type]
    abandoned = hello(dataclasses.replace(identity, boot_id="old"), 7)
    abandoned.done.cancel()
    batches.apply([abandoned])
    assert batches.apply([spoken(host, identity, 8, 2)]) == [2]  # type: ignore[arg-type]
    assert count_events(store) == {"added": 1}


def test_facts_of_an_old_epoch_do_not_overwrite_newer_ones(store: Store) -> None:
    one, other = writer(store), writer(store)
    identity = record()

    def told(host: int, epoch: int, kernel: str) -> Submission:
        facts = {"os.kernel": kernel}
        return Submission(
            host, identity.hostname, identity.instance, epoch, (), facts, 1_000, _nobody_waits()
        )

    [host] = one.apply([hello(identity, 7)])
    assert isinstance(host, Registered)
    assert one.apply([told(host.host, 7, "6.1")]) == [0]
    other.apply([hello(identity, 8)])
    other.apply([told(host.host, 8, "6.12")])
    [answer] = apply_repeatedly(one, [told(host.host, 7, "6.6")])
    assert isinstance(answer, EpochOver)
    assert count_events(store) == {"added": 1, "fact": 1}
