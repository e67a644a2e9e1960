"""What the rest of the collector relies on, on both kinds of database."""

from __future__ import annotations

import math
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.core.silence import HEARTBEAT_GRACE
from collector.core.status import CheckStatus, Event, EventKind, HostStatus, Silence
from collector.store import collectors, hosts, schema, statuses
from collector.store.collectors import CollectorRow, Listening
from collector.store.dialect import SeenRow
from collector.store.errors import SchemaMismatch, StoreConflict, StoreUnavailable
from collector.store.store import Store, open_store
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, State
from tests.collector.fleet import LAYOUT, Fleet, record

NASTY = [
    "",
    "plain",
    "trailing ",
    "trailing  ",
    "Case",
    "case",
    "é",
    "e",
    "nul\0inside",
    "\x1b[31m",
    "quote ' \" ` \\ %s ?",
    "日本語",
    "\U0001f5a5",
    "x" * 255,
]


def seen(host: int, version: int, **fields: int) -> SeenRow:
    return SeenRow(
        **{
            "epoch": 1,
            "seq": 1,
            "received_at": 1,
            "measured_at": 1,
            "silence": 0,
            **fields,
            "host": host,
            "version": version,
        }
    )  # type: ignore[arg-type]


def now() -> int:
    return time.time_ns() // 1_000_000


# --- schema ---


def test_upgrade_twice_applies_once(database_url: str) -> None:
    store = open_store(database_url, pool_size=1, create=True)
    assert schema.stored_version(store) == 0
    with pytest.raises(SchemaMismatch, match="collector-cli db upgrade"):
        schema.require_known_version(store)
    assert schema.upgrade(store, now) == list(range(1, schema.known_version() + 1))
    assert schema.upgrade(store, now) == []
    schema.require_known_version(store)
    store.close()


def test_two_upgraders_at_once(database_url: str) -> None:
    stores = [open_store(database_url, pool_size=1, create=True) for _ in range(2)]
    start = threading.Barrier(2)

    def run(store: Store) -> list[int]:
        start.wait()
        return schema.upgrade(store, now, pause=lambda _: time.sleep(0.01))

    with ThreadPoolExecutor(2) as threads:
        applied = sorted(threads.map(run, stores))
    assert applied == [[], list(range(1, schema.known_version() + 1))]
    for store in stores:
        schema.require_known_version(store)
        store.close()


def test_an_interrupted_upgrade_is_finished(store: Store) -> None:
    with store.transaction() as tx:
        tx.execute("DROP TABLE event")
        tx.execute("DELETE FROM schema_version")
    assert schema.upgrade(store, now) == list(range(1, schema.known_version() + 1))
    with store.transaction() as tx:
        assert tx.query("SELECT COUNT(*) FROM event") == [(0,)]


def test_a_dead_upgraders_lease_expires(store: Store) -> None:
    with store.transaction() as tx:
        tx.execute("INSERT INTO schema_lease (id, owner, expires_at) VALUES (1, 'dead', %s)", (now() + 1000,))
    with pytest.raises(StoreUnavailable, match="another program is upgrading"):
        schema.upgrade(store, now, patience=0, pause=lambda _: None)
    assert schema.upgrade(store, lambda: now() + 2000) == []


def test_newer_and_older_schema_are_refused(store: Store) -> None:
    with store.transaction() as tx:
        tx.execute("INSERT INTO schema_version (version, applied_at) VALUES (999, 1)")
    with pytest.raises(SchemaMismatch, match="999, newer than"):
        schema.require_known_version(store)
    with pytest.raises(SchemaMismatch, match="999, newer than"):
        schema.upgrade(store, now)


# --- hosts ---


def test_hosts_are_stored_exactly(store: Store) -> None:
    records = [
        record(
            name,
            machine_id=name,
            boot_id=name,
            agent_version=name,
            address=name,
            groups=(name,) if name else (),
        )
        for name in NASTY
    ]
    with store.transaction() as tx:
        hosts.add_hosts(tx, records, 17)
    with store.transaction(write=False) as tx:
        found = hosts.find_hosts(tx, [r.host_id for r in records])
        listed = hosts.list_hosts(tx)
    assert {host_id: stored.record for host_id, stored in found.items()} == {r.host_id: r for r in records}
    assert sorted(listed) == sorted((s.host, s.record.host_id, s.record.hostname) for s in found.values())


def test_all_groups_of_one_host_are_kept_apart(store: Store) -> None:
    groups = tuple(sorted(name for name in NASTY if name))
    one = record(groups=groups)
    with store.transaction() as tx:
        hosts.add_hosts(tx, [one], 1)
        assert hosts.find_hosts(tx, [one.host_id])[one.host_id].record == one


def test_adding_a_host_again_changes_nothing(store: Store) -> None:
    one = record(groups=("a",))
    with store.transaction() as tx:
        hosts.add_hosts(tx, [one], 1)
        before = hosts.find_hosts(tx, [one.host_id])
    with store.transaction() as tx:
        hosts.add_hosts(tx, [one, record("other")], 2)
        assert hosts.find_hosts(tx, [one.host_id]) == before
        assert len(hosts.list_hosts(tx)) == 2


def test_update_host(store: Store) -> None:
    one = record(groups=("a", "b"))
    two = record("renamed", host_id=one.host_id, address="10.0.0.1", ttl=7, groups=("b", "c"))
    with store.transaction() as tx:
        hosts.add_hosts(tx, [one], 1)
        stored = hosts.find_hosts(tx, [one.host_id])[one.host_id]
        updated = hosts.update_host(tx, stored, two)
        assert hosts.find_hosts(tx, [one.host_id])[one.host_id] == updated
        assert (updated.host, updated.record) == (stored.host, two)


def test_find_more_hosts_than_fit_into_one_statement(store: Store) -> None:
    records = [record(f"h{number}") for number in range(1201)]
    with store.transaction() as tx:
        hosts.add_hosts(tx, records, 1)
        assert len(hosts.find_hosts(tx, [r.host_id for r in records])) == 1201
        assert hosts.find_hosts(tx, []) == {}


def test_remove_host_takes_all_but_its_events(store: Store) -> None:
    fleet = Fleet(store)
    host, _ = fleet.add("gone", groups=("g",), facts={"a": "b"})
    fleet.event(host, "gone", Event(1, EventKind.REBOOT))
    with store.transaction() as tx:
        assert hosts.remove_host(tx, host)
        assert not hosts.remove_host(tx, host)
    with store.transaction() as tx:
        for table in ("host", "host_group", "host_seen", "host_latest", "host_fact", "check_state"):
            assert tx.query(f"SELECT COUNT(*) FROM {table}") == [(0,)], table
        assert tx.query("SELECT COUNT(*) FROM event") == [(1,)]


def test_a_removed_hosts_number_is_not_given_again(store: Store) -> None:
    fleet = Fleet(store)
    first, identity = fleet.add("one")
    with store.transaction() as tx:
        hosts.remove_host(tx, first)
    again, _ = fleet.add("one", host_id=identity.host_id)
    assert again != first


def test_facts(store: Store) -> None:
    host, _ = Fleet(store).add("one")
    first = {**{name: name * 3 for name in NASTY}, "long": "y" * 4096}
    with store.transaction() as tx:
        hosts.write_facts(tx, host, first, hosts.facts_hash(first))
    with store.transaction() as tx:
        assert hosts.load_facts(tx, host) == first
        assert hosts.load_facts_hashes(tx, [host, 999_999]) == {host: hosts.facts_hash(first)}
        hosts.write_facts(tx, host, {"plain": None, "Case": "new"}, b"0123456789abcdef")
    with store.transaction() as tx:
        expected = {**first, "Case": "new"}
        del expected["plain"]
        assert hosts.load_facts(tx, host) == expected
        assert hosts.load_facts_hashes(tx, [host])[host] == b"0123456789abcdef"


# --- statuses ---


def test_a_new_host_has_an_empty_status(store: Store) -> None:
    host, _ = Fleet(store).add("new", ago=None)
    with store.transaction() as tx:
        assert statuses.load_statuses(tx, [host]) == {host: (0, HostStatus())}
        assert statuses.load_latest(tx, [host]) == {}
        assert statuses.load_statuses(tx, [999_999]) == {}


def test_high_water_marks_move_only_from_the_version_read(store: Store) -> None:
    fleet = Fleet(store)
    one, _ = fleet.add("one", ago=None)
    two, _ = fleet.add("two", ago=None)
    top = 2**63 - 1
    with store.transaction() as tx:
        statuses.write_seen(
            tx,
            [seen(two, 0), seen(one, 0, epoch=top, seq=top, received_at=5, measured_at=-(2**53), silence=1)],
        )
    with store.transaction() as tx:
        version, status = statuses.load_statuses(tx, [one])[one]
    assert (version, status.epoch, status.seq, status.received_at, status.silence) == (
        1,
        top,
        top,
        5,
        Silence.ALONE,
    )
    with pytest.raises(StoreConflict), store.transaction() as tx:
        statuses.write_seen(tx, [seen(one, 1, seq=8), seen(two, 0, seq=9)])
    with store.transaction() as tx:
        after = statuses.load_statuses(tx, [one, two])
    assert after[one].version == 1
    assert after[one].status.seq == top
    assert after[two].version == 1


def test_the_same_report_twice_still_counts_as_written(store: Store) -> None:
    host, _ = Fleet(store).add("one", ago=None)
    with store.transaction() as tx:
        statuses.write_seen(tx, [seen(host, 0)])
        statuses.write_seen(tx, [seen(host, 1)])
        assert statuses.load_statuses(tx, [host])[host].version == 2


def test_writing_a_removed_host_is_a_conflict_and_makes_no_row(store: Store) -> None:
    host, _ = Fleet(store).add("one", ago=None)
    with store.transaction() as tx:
        hosts.remove_host(tx, host)
    with pytest.raises(StoreConflict), store.transaction() as tx:
        statuses.write_seen(tx, [seen(host, 0)])
    with store.transaction() as tx:
        assert tx.query("SELECT COUNT(*) FROM host_seen") == [(0,)]


def test_check_statuses_are_exact(store: Store) -> None:
    host, _ = Fleet(store).add("one", ago=None)
    checks = {
        CheckKey(name or "unnamed", instance): CheckStatus(
            State(number % 4), 2**53 + number, instance * 4, State(3 - number % 4), number, number + 1
        )
        for number, (name, instance) in enumerate(zip(NASTY, reversed(NASTY), strict=True))
    }
    with store.transaction() as tx:
        statuses.write_checks(tx, {host: checks})
    with store.transaction() as tx:
        assert statuses.load_statuses(tx, [host])[host].status.checks == checks
        gone = next(iter(checks))
        statuses.write_checks(tx, {host: {gone: None, CheckKey("new"): CheckStatus(State.OK, 1)}})
    with store.transaction() as tx:
        left = statuses.load_statuses(tx, [host])[host].status.checks
    assert left == {
        **{key: check for key, check in checks.items() if key != gone},
        CheckKey("new"): CheckStatus(State.OK, 1),
    }


def test_calm_is_told_from_the_checks(store: Store) -> None:
    host, _ = Fleet(store).add("one")
    with store.transaction() as tx:
        assert statuses.load_statuses(tx, [host])[host].status.is_calm
        statuses.write_checks(tx, {host: {CheckKey("cpu"): CheckStatus(State.OK, 1, "", State.WARNING, 2)}})
        assert not statuses.load_statuses(tx, [host])[host].status.is_calm


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(width=64), min_size=3, max_size=3))
def test_latest_values_are_exact(store: Store, values: list[float]) -> None:
    with store.transaction() as tx:
        known = hosts.list_hosts(tx)
    host = known[0][0] if known else Fleet(store).add("one")[0]
    results = [CheckResult(1, State.UNKNOWN, "no \0 answer \U0001f5a5")]
    with store.transaction() as tx:
        number = statuses.layout_number(tx, LAYOUT)
        statuses.write_latest(tx, [statuses.latest_row(host, number, values, results)])
    with store.transaction() as tx:
        latest = statuses.load_latest(tx, [host])[host]
    assert [math.copysign(1, v) if v == 0 else v for v in latest.values if v == v] == [
        math.copysign(1, v) if v == 0 else v for v in values if v == v
    ]
    assert [v != v for v in latest.values] == [v != v for v in values]
    assert latest.results == tuple(results)
    assert latest.layout == LAYOUT


def test_layouts_are_stored_once(store: Store) -> None:
    other = Layout((CheckLayout(CheckKey("naïve\0", "日本 "), (Measurement("m{a=b}", "1"),)),))
    with store.transaction() as tx:
        one, two = statuses.layout_number(tx, LAYOUT), statuses.layout_number(tx, other)
        assert statuses.layout_number(tx, LAYOUT) == one != two
        stored = dict(tx.query("SELECT id, content FROM layout"))
    assert Layout.from_json(stored[two]) == other
    with store.transaction() as tx:
        assert statuses.layout_number(tx, other) == two


def test_events_are_exact(store: Store) -> None:
    from collector.store.event_log import Filter, load_events

    host, identity = Fleet(store).add("one")
    events = [
        Event(number, EventKind.STATE, name, name, name, name, name * 4, -number)
        for number, name in enumerate(NASTY, 1)
    ]
    with store.transaction() as tx:
        statuses.write_events(tx, [(host, "one", event) for event in events])
        statuses.write_events(tx, [(None, "", Event(99, EventKind.FLEET_SILENT, new="40"))])
        statuses.write_events(tx, [])
    with store.transaction() as tx:
        stored = load_events(tx, Filter(), 100)
    assert [
        Event(e.at, EventKind(e.kind), e.subject, e.instance, e.old, e.new, e.message, e.measured_at)
        for e in stored[:-1]
    ] == events
    assert {(e.hostname, e.host_id) for e in stored[:-1]} == {("one", identity.host_id)}
    assert (stored[-1].hostname, stored[-1].host_id, stored[-1].new) == ("", None, "40")


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    fleet = Fleet(store)
    host, _ = fleet.add("one", ago=None)

    def half_a_batch() -> None:
        with store.transaction() as tx:
            statuses.write_seen(tx, [seen(host, 0)])
            statuses.write_events(tx, [(host, "one", Event(1, EventKind.REBOOT))])
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half_a_batch()
    with store.transaction() as tx:
        assert statuses.load_statuses(tx, [host])[host].version == 0
        assert tx.query("SELECT COUNT(*) FROM event") == [(0,)]


def test_two_writers_of_the_same_hosts_both_get_through(store: Store) -> None:
    """Every write wins once it has loaded again; none is lost, none deadlocks for ever."""
    fleet = Fleet(store)
    numbers = [fleet.add(f"h{number}", ago=None)[0] for number in range(20)]

    def write(order: list[int]) -> None:
        for _ in range(15):
            while True:
                try:
                    with store.transaction() as tx:
                        loaded = statuses.load_statuses(tx, order)
                        statuses.write_seen(
                            tx, [seen(h, loaded[h].version, seq=loaded[h].status.seq + 1) for h in order]
                        )
                    break
                except StoreConflict:
                    continue

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, [numbers, numbers[::-1], numbers[5:15]]))
    with store.transaction() as tx:
        after = statuses.load_statuses(tx, numbers)
    assert [after[h].status.seq for h in numbers] == [30] * 5 + [45] * 10 + [30] * 5


# --- collectors ---


def row(name: str, since: int, beat: int, stopped: int | None = None) -> CollectorRow:
    return CollectorRow(name, "127.0.0.1:1", "0.1.0", 8, since, beat, stopped)


def test_heartbeats_are_kept_by_name(store: Store) -> None:
    with store.transaction() as tx:
        assert collectors.load_collectors(tx) == []
        collectors.heartbeat(tx, row("a/127.0.0.1:1", 1, 2))
        collectors.heartbeat(tx, row("b", 1, 2))
        collectors.heartbeat(tx, row("a/127.0.0.1:1", 1, 9, 9))
        assert collectors.load_collectors(tx) == [row("a/127.0.0.1:1", 1, 9, 9), row("b", 1, 2)]
        collectors.forget_collector(tx, "b")
        assert [r.name for r in collectors.load_collectors(tx)] == ["a/127.0.0.1:1"]


def test_time_is_the_collectors_wherever_it_is_read(store: Store) -> None:
    ahead = now() + 86_400_000  # a collector whose clock is a day ahead
    with store.transaction() as tx:
        collectors.heartbeat(tx, row("a", ahead - 5000, ahead))
        listening = collectors.load_listening(tx)
    assert listening.since == ahead - 5000
    assert ahead <= listening.now < ahead + 5000


def test_nobody_listens_without_heartbeats(store: Store) -> None:
    with store.transaction() as tx:
        before = now()
        listening = collectors.load_listening(tx)
        assert listening.since is None
        assert abs(listening.now - before) < 5000
        collectors.heartbeat(tx, row("a", 1000, before, before))
        tx.execute("UPDATE collector SET database_at = database_at - %s", (HEARTBEAT_GRACE + 1,))
        assert collectors.load_listening(tx).since is None


def test_one_collector_takes_over_from_another(store: Store) -> None:
    t = now()
    with store.transaction() as tx:
        collectors.heartbeat(tx, row("a", t - 60_000, t - 8_000, t - 8_000))
        tx.execute("UPDATE collector SET database_at = database_at - 8000")
        collectors.heartbeat(tx, row("b", t - 5_000, t))
        assert collectors.load_listening(tx) == Listening(pytest.approx(t, abs=5000), t - 60_000)


def test_settings(store: Store) -> None:
    with store.transaction() as tx:
        assert collectors.load_setting(tx, "x") is None
        collectors.save_setting(tx, "x", "1")
        collectors.save_setting(tx, "x", "naïve \0 \U0001f5a5")
        assert collectors.load_setting(tx, "x") == "naïve \0 \U0001f5a5"
        assert collectors.load_setting(tx, "x", lock=True) == "naïve \0 \U0001f5a5"


def test_unique_ids_are_not_case_or_space_folded_into_each_other(store: Store) -> None:
    one = record("same", host_id=str(uuid.UUID(int=10)))
    two = record("same", host_id=str(uuid.UUID(int=11)))
    with store.transaction() as tx:
        hosts.add_hosts(tx, [one, two], 1)
        assert len(hosts.find_hosts(tx, [one.host_id, two.host_id])) == 2
