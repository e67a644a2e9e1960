"""The stored fleet that is measured is what the benchmark says that it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.stored_fleet import fill
from collector.cli.hosts import list_hosts
from collector.cli.stale import find_silent
from collector.cli.status import look_at_fleet
from collector.config import Ssh
from collector.core.silence import Presence
from collector.store.schema import upgrade
from collector.store.selection import ALL
from collector.store.store import Transaction, open_store
from fleetpulse.model import State


@pytest.fixture(scope="module")
def tx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transaction]:
    path: Path = tmp_path_factory.mktemp("fleet") / "fleet.db"
    store = open_store(f"sqlite:///{path}", pool_size=1, create=True)
    upgrade(store, lambda: int(time.time() * 1000))
    fill(store, 2000)
    with store.transaction(write=False) as tx:
        yield tx
    store.close()


def test_one_host_in_a_hundred_is_silent(tx):
    fleet = look_at_fleet(tx, ALL, 20, Ssh())
    assert fleet.presences == {
        Presence.FRESH: 1976,
        Presence.STALE: 20,
        Presence.UNKNOWN: 2,
        Presence.NEVER_SEEN: 2,
    }


def test_one_host_in_twenty_is_not_well(tx):
    fleet = look_at_fleet(tx, ALL, 20, Ssh())
    assert 0.03 < 1 - fleet.states[State.OK] / fleet.total < 0.07


def test_the_silent_are_diagnosed(tx):
    silent = find_silent(tx, ALL, 0)
    assert len(silent.hosts) == 24
    assert len(silent.diagnoses) == 20


def test_every_host_has_what_listings_show(tx):
    found = list_hosts(tx, ALL, (), (), None, Ssh(), in_full=True)
    assert found.matching == len(found.groups) == len(found.labels) == len(found.certificates) == 2000
