"""What is stored of who a host is, and what a Hello may change of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collector.core.rules import RuleSet
from collector.core.status import HostRecord
from collector.ingest.batch import BatchWriter
from collector.ingest.items import HelloOver, Registered, Registration, Submission
from collector.store import hosts
from collector.store.errors import StoreConflict
from collector.store.hosts import StoredHost
from collector.store.records import rename_host
from collector.store.store import Store, Transaction
from fleetpulse.model import Layout, Report
from tests.collector.fleet import record

SAID = record("web-1", groups=("b",), hardware_id="hardware", instance="run", collector="c1")


def add(tx: Transaction, said: HostRecord = SAID) -> StoredHost:
    hosts.add_hosts(tx, [said], 1)
    return find(tx, said)


def find(tx: Transaction, said: HostRecord = SAID) -> StoredHost:
    return hosts.find_hosts(tx, [said.host_id])[said.host_id]


def test_a_machine_that_is_called_something_else_here_keeps_that_name(store: Store) -> None:
    with store.transaction() as tx:
        known = add(tx)
        assert known == StoredHost(known.host, SAID, "web-1")
        rename_host(tx, known.host, "shop", 2)
        renamed = find(tx)
        assert (renamed.name, renamed.record) == ("shop", SAID)
        # The machine gets another name of its own, even the one that it has here.
        for own_name in ("web-2", "shop", "web-3"):
            renamed = hosts.update_host(tx, renamed, replace(SAID, hostname=own_name))
            assert renamed == find(tx)
            assert (renamed.name, renamed.record.hostname) == ("shop", own_name)
        rename_host(tx, known.host, "web-3", 3)
        own = hosts.update_host(tx, find(tx), replace(SAID, hostname="web-4"))
        assert (own.name, own.own_name) == ("web-4", "")
        assert own == find(tx)


def test_a_hello_does_not_take_assigned_groups_away(store: Store) -> None:
    with store.transaction() as tx:
        known = add(tx)
        hosts.assign_groups(tx, known.host, ("a", "b"))
        known = find(tx)
        assert known.record.groups == ("a", "b")
        assert hosts.update_host(tx, known, SAID) is known, "nothing to write"
        known = hosts.update_host(tx, known, replace(SAID, groups=("c",)))
        assert known == find(tx)
        assert known.record.groups == ("a", "b", "c")
        known = hosts.update_host(tx, known, replace(SAID, groups=()))
        assert find(tx).record.groups == ("a", "b")


@pytest.mark.parametrize(
    "column", ["hostname", "own_name", "hardware_id", "instance", "collector", "boot_id"]
)
def test_a_hello_is_not_written_over_what_nobody_has_read(store: Store, column: str) -> None:
    with store.transaction() as tx:
        known = add(tx)
        tx.execute(f"UPDATE host SET {column} = 'other' WHERE id = %s", (known.host,))
        with pytest.raises(StoreConflict):
            hosts.update_host(tx, known, replace(SAID, address="192.0.2.9"))


def test_a_stream_under_an_old_name_says_hello_again(store: Store) -> None:
    """So that its next events bear the new one; its report is sent again."""
    batches = BatchWriter(store, lambda: RuleSet(()), lambda: 1_000)
    report = Report(1, 1, Layout(()), ())

    def submission(name: str) -> Submission:
        return Submission(known.host, name, "run", 7, (report,), None, 1_000, None)  # type: ignore[arg-type]

    class Waiting:
        def cancelled(self) -> bool:
            return False

    hello = Registration(SAID, 7, 1_000, Waiting())  # type: ignore[arg-type]
    [known] = batches.apply([hello])
    assert isinstance(known, Registered)
    with store.transaction() as tx:
        rename_host(tx, known.host, "shop", 2)
    with pytest.raises(StoreConflict):
        batches.apply([submission("web-1")])
    batches.forget([submission("web-1")])  # as the writer does before it tries again
    [answer] = batches.apply([submission("web-1")])
    assert isinstance(answer, HelloOver)
    assert batches.apply([hello]) == [Registered(known.host, 0, "shop")]
    assert batches.apply([submission("shop")]) == [1]
