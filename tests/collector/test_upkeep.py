"""What is too old goes, a little at a time, and what is in use stays."""

from __future__ import annotations

from collector.core.status import Event, EventKind, HostRecord
from collector.store import hosts, statuses, upkeep
from collector.store.store import Store
from fleetpulse.model import CheckKey, CheckLayout, Layout, Measurement


def layout(name: str) -> Layout:
    return Layout((CheckLayout(CheckKey(name), (Measurement("m", "1"),)),))


def test_old_events_go_in_bounded_steps_and_newer_ones_stay(store: Store) -> None:
    with store.transaction() as tx:
        ages = [*range(upkeep.AT_ONCE + 5), 10_000]
        statuses.write_events(tx, [(None, "", Event(at, EventKind.FLEET_BACK)) for at in ages])
    assert upkeep.delete_old_events(store, 10_000) == upkeep.AT_ONCE
    assert upkeep.delete_old_events(store, 10_000) == 5
    assert upkeep.delete_old_events(store, 10_000) == 0
    with store.transaction() as tx:
        assert tx.query("SELECT at FROM event") == [(10_000,)]


def test_layouts_that_nobody_uses_go(store: Store) -> None:
    record = HostRecord("id", "h", "m", "b", "v", "a", 1_000, 3_000)
    with store.transaction() as tx:
        hosts.add_hosts(tx, [record], 1)
        host = hosts.find_hosts(tx, ["id"])["id"].host
        used = statuses.layout_number(tx, layout("used"))
        statuses.layout_number(tx, layout("unused"))
        statuses.write_latest(tx, [statuses.latest_row(host, used, (1.0,), ())])
    assert upkeep.delete_unused_layouts(store) == 1
    assert upkeep.delete_unused_layouts(store) == 0
    with store.transaction() as tx:
        assert statuses.load_latest(tx, [host])[host].layout == layout("used")
