"""What is too old goes, a little at a time, and what is in use stays."""

from __future__ import annotations

from collector.core.status import Event, EventKind, HostRecord
from collector.store import hosts, statuses, upkeep
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.store import Store
from collector.store.tokens import NewToken, add_tokens
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


def test_credentials_that_ended_long_ago_go_in_bounded_steps(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(upkeep, "AT_ONCE", 3)
    record = HostRecord("id", "h", "m", "b", "v", "a", 1_000, 3_000)
    with store.transaction() as tx:
        hosts.add_hosts(tx, [record], 1)
        host = hosts.find_hosts(tx, ["id"])["id"].host
        for number in range(6):
            row = CertificateRow(bytes([number]) * 32, host, b"i" * 32, 1, 10 * number)
            add_certificate(tx, row)
        tokens = [NewToken(bytes([n]) * 32, "", None, (), 1, 1, 10 * n) for n in range(5)]
        add_tokens(tx, tokens)
    assert upkeep.delete_ended_credentials(store, 40) == 3
    assert upkeep.delete_ended_credentials(store, 40) == 1
    assert upkeep.delete_ended_credentials(store, 40) == 0
    with store.transaction() as tx:
        assert tx.query("SELECT not_after FROM certificate ORDER BY not_after") == [(40,), (50,)]
        assert tx.query("SELECT expires_at FROM enrolment_token") == [(40,)]
