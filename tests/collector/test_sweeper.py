"""The sweeper on a real database: beside another collector, and beside a database that stalls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from collector.clock import Clock
from collector.core.silence import FleetSilence
from collector.core.status import Event, EventKind, Silence
from collector.store import silence
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.collectors import CollectorRow, load_collectors
from collector.store.dialect import SeenRow
from collector.store.errors import StoreConflict, StoreError, StoreLocked
from collector.store.schema import upgrade
from collector.store.statuses import write_seen
from collector.store.store import Store, Transaction, open_store
from collector.sweeper import Sweeper
from tests.collector.fleet import MINUTE, Fleet
from tests.mariadb_server import MariadbServer
from tests.processes import wait_until


class HookedStore:
    """Runs `before` before every transaction."""

    def __init__(self, store: Store, before: Callable[[], None]):
        self._store = store
        self._before = before

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        self._before()
        with self._store.transaction(write=write) as tx:
            yield tx


def sweeper(
    store: object,
    now: Callable[[], int],
    on_outcome: Callable[[StoreError | None], None] = lambda error: None,
    *,
    interval: float = 0.02,
    name: str = "c1",
    failing_for: Callable[[], float] = lambda: 0.0,
) -> Sweeper:
    me = CollectorRow(name, "127.0.0.1:1", "0.1.0", 8, now() - 3_600_000, now(), None)
    return Sweeper(
        store,  # type: ignore[arg-type]
        me,
        Clock(lambda: now() / 1000, lambda: now() / 1000),
        on_outcome,
        interval=interval,
        fleet_share=0.5,
        fleet_minimum=3,
        event_retention=365 * 86_400_000,
        failing_for=failing_for,
    )


def kinds(store: Store) -> list[str]:
    with store.transaction(write=False) as tx:
        return sorted(kind for (kind,) in tx.query("SELECT kind FROM event"))


def test_a_stalled_database_makes_no_fleet_silent(store: Store) -> None:
    """It held up the heartbeat, and so the reports: they follow, and are older than a time-to-live."""
    fleet = Fleet(store)
    hosts = [fleet.add(f"h{number}", interval=2_000, ttl=6_000) for number in range(4)]
    now = fleet.now
    stalls = [5_000]

    def stall() -> None:
        nonlocal now
        now += stalls.pop() if stalls else 0

    swept = sweeper(HookedStore(store, stall), lambda: now)
    now += 2_500
    for _ in range(3):
        swept.beat()
        swept.sweep()
        now += 500
    assert kinds(store) == []
    # Those that stay away are found a time-to-live later.
    now += 6_000
    with store.transaction() as tx:
        write_seen(tx, [SeenRow(hosts[0][0], 1, 7, 99, now, now, 0)])
    for _ in range(20):
        swept.beat()
        swept.sweep()
        now += 500
    assert "fleet-silent" in kinds(store)


def test_a_stall_of_two_collectors_makes_no_fleet_silent_either(store: Store) -> None:
    """The first that is back must not go by what the other has written before."""
    fleet = Fleet(store)
    for number in range(4):
        fleet.add(f"h{number}", interval=2_000, ttl=6_000)
    now = fleet.now
    pair = [sweeper(store, lambda: now, name=name) for name in ("c1", "c2")]
    for swept in pair:
        swept.beat()
    now += 9_000
    for swept in pair:
        swept.beat()
        swept.sweep()
    assert kinds(store) == []


def test_whose_reports_cannot_be_stored_is_not_silent(store: Store) -> None:
    """Rows that somebody else locks stop a writer, and not the sweeper."""
    fleet = Fleet(store)
    fleet.add("h", interval=2_000, ttl=6_000)
    now, failing = fleet.now, 0.0
    swept = sweeper(store, lambda: now, failing_for=lambda: failing)

    def go_on(turns: int) -> None:
        nonlocal now, failing
        for _ in range(turns):
            now += 1_000
            failing += 1.0 if failing else 0.0
            swept.beat()
            swept.sweep()

    failing = 0.1
    go_on(20)
    assert kinds(store) == []
    failing = 0.0
    go_on(5)
    assert kinds(store) == []
    go_on(5)
    assert kinds(store) == ["silent"]


def test_who_may_be_silent_for_one_interval_only_is_announced_then(store: Store) -> None:
    fleet = Fleet(store)
    fleet.add("h", ago=61_000, interval=60_000, ttl=60_000)
    swept = sweeper(store, lambda: fleet.now)
    swept.beat()
    swept.sweep()
    assert kinds(store) == ["silent"]


def test_who_fell_silent_alone_is_not_marked_with_the_fleet_too(store: Store) -> None:
    """Another collector may have announced it since the look; its return would not be told."""
    fleet = Fleet(store)
    host, _ = fleet.add("h", ago=2 * MINUTE, silence=Silence.ALONE)
    with store.transaction() as tx:
        assert silence.mark(tx, [host], Silence.FLEET, fleet.now) == []


def test_two_collectors_do_not_announce_the_first_fleet_silence_twice(mariadb: MariadbServer) -> None:
    """There is no row yet that the first of them could have locked."""
    store = open_store(mariadb.fresh_database(), pool_size=4)
    upgrade(store, lambda: 1)
    seen: list[FleetSilence] = []

    def second() -> None:
        with store.transaction() as tx:
            seen.append(silence.load_fleet_silence(tx, lock=True))

    def is_waiting() -> bool:
        # Not innodb_trx, which shows a copy that is renewed only when nobody has read it for 100 ms.
        return bool(seen) or mariadb.status("Innodb_row_lock_current_waits") > 0

    late = threading.Thread(target=second)
    with store.transaction() as tx:
        assert silence.load_fleet_silence(tx, lock=True) == FleetSilence()
        late.start()
        wait_until(is_waiting)
        silence.save_fleet_silence(tx, FleetSilence(since=17))
    late.join(20)
    store.close()
    assert seen == [FleetSilence(since=17)]


def test_a_conflict_is_no_outage(store: Store) -> None:
    """Two that write the same rows try again; the database is there."""
    outcomes: list[StoreError | None] = []
    conflicts = [StoreConflict("deadlock")] * 3

    def conflict() -> None:
        if conflicts:
            raise conflicts.pop()

    swept = sweeper(HookedStore(store, conflict), lambda: time.time_ns() // 1_000_000, outcomes.append)
    swept.start()
    wait_until(lambda: outcomes)
    swept.stop(20)
    assert outcomes[0] is None
    assert not swept.is_alive()


def test_rows_that_stay_locked_are_told(store: Store) -> None:
    """Whoever holds them keeps every collector from announcing anything."""
    outcomes: list[StoreError | None] = []
    locked = [StoreLocked("Lock wait timeout")]

    def lock() -> None:
        if locked:
            raise locked.pop()

    swept = sweeper(HookedStore(store, lock), lambda: time.time_ns() // 1_000_000, outcomes.append)
    swept.start()
    wait_until(lambda: len(outcomes) >= 2)
    swept.stop(20)
    assert isinstance(outcomes[0], StoreLocked)
    assert outcomes[1] is None


def test_the_end_is_noted(store: Store) -> None:
    swept = sweeper(store, lambda: 1_000)
    swept.start()
    swept.stop(20)
    with store.transaction(write=False) as tx:
        assert [row.stopped_at for row in load_collectors(tx)] == [1_000]


def test_stopping_does_not_wait_for_a_database_that_does_not_answer(store: Store) -> None:
    hangs, answers = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        answers.wait(30)

    swept = sweeper(HookedStore(store, hang), lambda: 1_000)
    swept.start()
    assert hangs.wait(20)
    swept.stop(0.05)
    assert swept.is_alive()
    answers.set()
    swept.join(20)
    assert not swept.is_alive()


# --- what is too old, and clocks that are wrong ---

HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Clocks:
    """Of one machine, in milliseconds. Setting `system` is what an admin or NTP does."""

    def __init__(self, system: int):
        self.system = system
        self._steady = 0

    def sweeper(self, store: Store, name: str = "c1") -> Sweeper:
        made = sweeper(store, lambda: self.system, name=name)
        made._clock = Clock(lambda: self.system / 1000, lambda: self._steady / 1000)
        return made

    def live(self, milliseconds: int) -> None:
        self.system += milliseconds
        self._steady += milliseconds


def add_old(store: Store, fleet: Fleet, *, certificate_ended: int, event_at: int) -> None:
    host, _ = fleet.add("web-1")
    with store.transaction() as tx:
        add_certificate(tx, CertificateRow(b"f" * 32, host, b"i" * 32, 1, certificate_ended))
    fleet.event(None, "", Event(event_at, EventKind.FLEET_BACK, message="old"))


def kept(store: Store) -> tuple[int, int]:
    """How many certificates and events there are."""
    with store.transaction(write=False) as tx:
        [(certificates,)] = tx.query("SELECT COUNT(*) FROM certificate")
        [(events,)] = tx.query("SELECT COUNT(*) FROM event WHERE message = 'old'")
    return certificates, events


def take_turns(swept: Sweeper, clocks: Clocks, store: Store) -> None:
    """Some turns of its thread, of which the first would delete what is too old."""
    swept.start()
    for _ in range(2):
        clocks.live(10)
        with store.transaction(write=False) as tx:
            before = max(row.heartbeat_at for row in load_collectors(tx))
        clocks.live(10)

        def has_beaten(before: int = before) -> bool:
            with store.transaction(write=False) as tx:
                return max(row.heartbeat_at for row in load_collectors(tx)) > before

        wait_until(has_beaten)
    swept.stop(20)


def test_what_is_too_old_goes(store: Store) -> None:
    fleet = Fleet(store)
    add_old(store, fleet, certificate_ended=fleet.now - 31 * DAY, event_at=fleet.now - 366 * DAY)
    clocks = Clocks(fleet.now)
    swept = clocks.sweeper(store)
    swept.join_collectors()
    take_turns(swept, clocks, store)
    assert kept(store) == (0, 0)


@pytest.mark.parametrize("ahead", [20 * HOUR, -20 * HOUR], ids=["others ahead", "system ahead"])
def test_a_certificate_has_ended_only_by_both_clocks(sqlite_store: Store, ahead: int) -> None:
    fleet = Fleet(sqlite_store)
    for name, ended in (("kept", DAY // 2), ("gone", 3 * DAY)):
        host, _ = fleet.add(name)
        row = CertificateRow(name.encode() * 8, host, b"i" * 32, 1, fleet.now - 29 * DAY - ended)
        with sqlite_store.transaction() as tx:
            add_certificate(tx, row)
    clocks = Clocks(fleet.now)
    if ahead > 0:
        fleet.now += ahead
    fleet.listen(name="other")
    swept = clocks.sweeper(sqlite_store)
    swept.join_collectors()
    if ahead < 0:
        clocks.system -= ahead
    swept.look_after_size()
    with sqlite_store.transaction(write=False) as tx:
        assert tx.query("SELECT fingerprint FROM certificate") == [(b"kept" * 8,)]


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_who_goes_on_from_a_clock_that_is_far_ahead_deletes_nothing_for_a_day(
    sqlite_store: Store, when: str
) -> None:
    """Even if the system's clock follows: an admin has a day to set both."""
    fleet = Fleet(sqlite_store)
    add_old(sqlite_store, fleet, certificate_ended=fleet.now + 90 * DAY, event_at=fleet.now)
    clocks = Clocks(fleet.now)
    swept = clocks.sweeper(sqlite_store)
    if when == "later":
        swept.join_collectors()
    fleet.now += 500 * DAY
    fleet.listen(name="ahead")
    if when == "at the start":
        swept.join_collectors()
    else:
        swept.beat()
    clocks.system += 500 * DAY
    take_turns(swept, clocks, sqlite_store)
    assert kept(sqlite_store) == (1, 1)


def test_nothing_is_deleted_while_the_systems_clock_says_otherwise(sqlite_store: Store) -> None:
    fleet = Fleet(sqlite_store)
    clocks = Clocks(fleet.now)
    swept = clocks.sweeper(sqlite_store)
    swept.join_collectors()
    add_old(sqlite_store, fleet, certificate_ended=fleet.now - 31 * DAY, event_at=fleet.now - 366 * DAY)
    clocks.system -= 2 * DAY
    swept.look_after_size()
    assert kept(sqlite_store) == (1, 1)
    clocks.system += 2 * DAY
    swept.look_after_size()
    assert kept(sqlite_store) == (0, 0)
