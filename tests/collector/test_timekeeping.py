"""One time for all collectors of a database, whatever their systems' clocks say."""

from __future__ import annotations

import threading

import pytest

from collector.core.silence import FleetSilence
from collector.core.status import Event, EventKind, Silence
from collector.store import collectors, silence, statuses
from collector.store.certificates import CertificateRow, add_certificate, load_certificates
from collector.store.collectors import load_listening
from collector.store.conflicts import ConflictRow, load_conflicts, save_conflict
from collector.store.dialect import SeenRow
from collector.store.errors import StoreConflict
from collector.store.event_log import Filter, load_events
from collector.store.reading import load_hosts
from collector.store.schema import upgrade
from collector.store.store import Store, open_store
from collector.store.timekeeping import Agreement, agree_on_time
from collector.store.tokens import NewToken, add_tokens, end_tokens, find_tokens
from tests.collector.fleet import MINUTE, Fleet
from tests.collector.test_sweeper import sweeper
from tests.mariadb_server import MariadbServer
from tests.processes import wait_until

HOUR = 60 * MINUTE


def agree(store: Store, name: str, system_now: int) -> Agreement:
    with store.transaction() as tx:
        return agree_on_time(tx, name, system_now)


def test_who_starts_alone_goes_by_its_own_clock(store: Store) -> None:
    fleet = Fleet(store)
    assert agree(store, "c1", fleet.now - HOUR) == Agreement(fleet.now - HOUR)
    fleet.listen(name="gone", stopped=1_000)
    fleet.listen(name="dead", heard=MINUTE)
    fleet.listen(name="c1")  # itself, before a restart
    assert agree(store, "c1", fleet.now + 1) == Agreement(fleet.now + 1, away=1)


def test_who_starts_beside_others_goes_by_their_time(store: Store) -> None:
    fleet = Fleet(store)
    fleet.add("heard")
    fleet.listen(name="c1")
    for system_now in (fleet.now - HOUR, fleet.now + HOUR):
        agreed = agree(store, "c2", system_now)
        assert fleet.now <= agreed.now < fleet.now + MINUTE
        assert agreed == Agreement(agreed.now, others=True)


def test_what_is_stored_in_the_future_counts_as_having_happened_now(store: Store) -> None:
    fleet = Fleet(store)
    now = fleet.now - HOUR
    future, _ = fleet.add("future")
    past, _ = fleet.add("past", ago=2 * HOUR)
    silent, _ = fleet.add("silent", ago=2 * HOUR, silence=Silence.ALONE)
    never, _ = fleet.add("never", ago=None)
    fleet.event(future, "future", Event(fleet.now, EventKind.REBOOT))
    fleet.listen(name="dead", heard=MINUTE)
    with store.transaction() as tx:
        silence.save_fleet_silence(tx, FleetSilence(fleet.now, now - 7))
        before = statuses.load_statuses(tx, [future, past])
    assert agree(store, "c1", now) == Agreement(now, brought_back=1)
    with store.transaction() as tx:
        heard = {line.host: line.received_at for line in load_hosts(tx)}
        assert heard == {future: now, past: now - HOUR, silent: now - HOUR, never: 0}
        after = statuses.load_statuses(tx, [future, past])
        assert after[past] == before[past]
        assert max(check.since for check in after[future].status.checks.values()) == now
        assert [event.at for event in load_events(tx, Filter(), 10)] == [now]
        assert silence.load_fleet_silence(tx) == FleetSilence(now, now - 7)
        # Whoever was heard in the future has not been heard since.
        assert collectors.load_listening_since(tx, now) is None
    # A writer that remembers the host as it was has to read it again.
    with pytest.raises(StoreConflict), store.transaction() as tx:
        statuses.write_seen(tx, [SeenRow(future, before[future].version, 7, 99, now, now, 0)])


def test_tokens_conflicts_and_certificates_of_the_future(store: Store) -> None:
    """A command may have written them while no collector ran, so they are all that there is of the future."""
    fleet = Fleet(store)
    now, ahead = fleet.now, fleet.now + 400 * 24 * HOUR
    host, _ = fleet.add("web-1", ago=HOUR)
    texts = ("future", "ended", "past")
    with store.transaction() as tx:
        add_tokens(
            tx,
            [
                NewToken(b"future".ljust(32), "", None, (), 1, ahead, ahead + HOUR),
                NewToken(b"ended".ljust(32), "web-1", host, (), 1, ahead, ahead + HOUR),
                NewToken(b"past".ljust(32), "", None, (), 1, now - 5, now + HOUR),
            ],
        )
        end_tokens(tx, host, ahead + MINUTE)
        for address, at in (("192.0.2.1", ahead), ("192.0.2.2", now - MINUTE)):
            place = address.encode().ljust(16)
            save_conflict(tx, ConflictRow(host, place, "web-1", address, "m", "h", "b", "i", at, at))
        for number, issued, revoked in ((1, ahead, None), (2, now - 7, ahead), (3, now - 7, now - 6)):
            add_certificate(
                tx, CertificateRow(bytes([number]) * 32, host, b"i" * 32, issued, ahead * 2, revoked)
            )
    assert agree(store, "c1", now) == Agreement(now)
    with store.transaction() as tx:
        found = find_tokens(tx, [text.encode().ljust(32) for text in texts])
        future, ended, past = (found[text.encode().ljust(32)] for text in texts)
        assert (future.created_at, future.expires_at) == (now, now + HOUR)
        assert not ended.is_valid(now)  # whoever ended it meant it
        assert (past.created_at, past.expires_at) == (now - 5, now + HOUR)
        assert sorted((row.first_at, row.last_at) for row in load_conflicts(tx)[host]) == [
            (now - MINUTE, now - MINUTE),
            (now, now),
        ]
        rows = {row.fingerprint[0]: row for row in load_certificates(tx, [host])[host]}
        assert [(rows[n].issued_at, rows[n].revoked_at) for n in (1, 2, 3)] == [
            (now, None),
            (now - 7, now),
            (now - 7, now - 6),
        ]
        assert {row.not_after for row in rows.values()} == {ahead * 2}


@pytest.mark.parametrize(("ago", "left"), [(HOUR // 4, HOUR * 3 // 4), (2 * HOUR, 0)])
def test_a_token_of_the_future_is_good_for_what_was_left_of_it(store: Store, ago: int, left: int) -> None:
    """`ago` before a collector was heard last, by the clock that was ahead."""
    fleet = Fleet(store)
    fleet.listen(name="dead", heard=MINUTE)
    made, now = fleet.now - MINUTE - ago, fleet.now - 24 * HOUR
    with store.transaction() as tx:
        add_tokens(tx, [NewToken(b"t" * 32, "", None, (), 1, made, made + HOUR)])
    agree(store, "c1", now)
    with store.transaction() as tx:
        [token] = find_tokens(tx, [b"t" * 32]).values()
    assert (token.created_at, token.expires_at) == (now, now + left)


def test_two_that_start_at_once_agree(mariadb: MariadbServer) -> None:
    store = open_store(mariadb.fresh_database(), pool_size=4)
    upgrade(store, lambda: 1)
    fleet = Fleet(store)
    second: list[Agreement] = []

    def start() -> None:
        second.append(agree(store, "c2", fleet.now + HOUR))

    late = threading.Thread(target=start)
    with store.transaction() as tx:
        assert agree_on_time(tx, "c1", fleet.now).now == fleet.now
        late.start()
        wait_until(lambda: second or mariadb.status("Innodb_row_lock_current_waits") > 0)
        collectors.heartbeat(tx, collectors.CollectorRow("c1", "", "", 8, fleet.now, fleet.now, None))
    late.join(20)
    store.close()
    assert second[0].others
    assert fleet.now <= second[0].now < fleet.now + MINUTE


def test_a_clock_that_falls_behind_the_others_goes_on_and_none_goes_back(store: Store) -> None:
    """Steady clocks drift by seconds a day; a suspended virtual machine's stands still."""
    fleet = Fleet(store)
    fleet.listen(name="ahead")
    slow = sweeper(store, lambda: fleet.now - 3_000, name="slow")
    slow.beat()
    fast = sweeper(store, lambda: fleet.now + HOUR, name="fast")
    fast.beat()
    with store.transaction() as tx:
        rows = {row.name: row for row in collectors.load_collectors(tx)}
    assert fleet.now <= rows["slow"].heartbeat_at < fleet.now + MINUTE
    assert rows["slow"].listening_since == fleet.now - 3_000 - HOUR  # it has been listening all the time
    assert rows["fast"].heartbeat_at == fleet.now + HOUR
    slow.beat()
    with store.transaction() as tx:
        rows = {row.name: row for row in collectors.load_collectors(tx)}
    assert rows["slow"].heartbeat_at >= fleet.now + HOUR
    # An hour that it has not lived through is no hour of listening.
    assert rows["slow"].listening_since == rows["slow"].heartbeat_at


def test_a_step_of_the_databases_clock_moves_no_collectors(store: Store) -> None:
    """Between two heartbeats of one, the other's age by that clock is nonsense."""
    fleet = Fleet(store)
    for step in (HOUR, -HOUR):
        fleet.listen(name="c1")
        with store.transaction() as tx:
            tx.execute("UPDATE collector SET database_at = database_at - %s", (step,))
        steady = sweeper(store, lambda: fleet.now, name="c2")
        steady.beat()
        with store.transaction() as tx:
            rows = {row.name: row for row in collectors.load_collectors(tx)}
        assert rows["c2"].heartbeat_at == fleet.now


def test_a_dead_collector_that_was_heard_in_the_databases_future_does_not_stop_the_time(store: Store) -> None:
    fleet = Fleet(store)
    fleet.listen(name="dead", heard=MINUTE)
    with store.transaction() as tx:
        tx.execute("UPDATE collector SET database_at = database_at + %s", (HOUR,))
    fleet.listen(name="live")
    with store.transaction() as tx:
        listening = load_listening(tx)
        assert [row.name for row in collectors.load_live(tx)] == ["live"]
    assert fleet.now <= listening.now < fleet.now + MINUTE
    assert listening.since == fleet.now - HOUR
