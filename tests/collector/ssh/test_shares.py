"""Who polls which hosts: leases that are shared out evenly, and never held twice."""

from __future__ import annotations

from collector.store.ssh_shares import (
    LEASE,
    RENEW,
    SHARES,
    Poller,
    give_back_shares,
    load_holders,
    take_shares,
)
from collector.store.store import Store

ONE, TWO, THREE = (Poller(name, name * 6) for name in ("one", "two", "three"))
NOW = 1_000_000_000


def take(store: Store, poller: Poller, now: int) -> frozenset[int]:
    with store.transaction() as tx:
        return take_shares(tx, poller, now)


def test_who_is_alone_gets_all(store: Store) -> None:
    assert len(take(store, ONE, NOW)) == SHARES
    with store.transaction(write=False) as tx:
        assert load_holders(tx) == dict.fromkeys(range(SHARES), "one")


def test_a_second_poller_gets_half_and_nobody_a_share_that_another_has(store: Store) -> None:
    take(store, ONE, NOW)
    assert take(store, TWO, NOW + 1) == frozenset()
    half = take(store, ONE, NOW + RENEW)
    assert len(half) == SHARES // 2
    assert len([share for share in half if share < 10]) == 5, "a small fleet is shared out, too"
    # What is given back stays nobody's for a moment, in which its last polls end.
    assert take(store, TWO, NOW + RENEW + 1) == frozenset()
    other = take(store, TWO, NOW + 2 * RENEW)
    assert other == frozenset(range(SHARES)) - half
    assert take(store, ONE, NOW + 2 * RENEW) == half


def test_three_pollers_differ_by_one_at_most(store: Store) -> None:
    held: dict[Poller, frozenset[int]] = {}
    for turn in range(6):
        for poller in (ONE, TWO, THREE):
            held[poller] = take(store, poller, NOW + turn * RENEW)
    sizes = sorted(map(len, held.values()))
    assert sum(sizes) == SHARES
    assert sizes[-1] - sizes[0] <= 1
    assert len(frozenset.union(*held.values())) == SHARES


def test_what_a_dead_poller_held_is_free_when_its_lease_ends_and_not_before(store: Store) -> None:
    for turn in range(3):
        take(store, TWO, NOW + turn * RENEW)
        mine = take(store, ONE, NOW + turn * RENEW)
    died = NOW + 2 * RENEW
    for now in range(died + RENEW, died + LEASE, RENEW):
        assert take(store, ONE, now) == mine
    assert len(take(store, ONE, died + LEASE)) == SHARES


def test_another_life_of_the_same_collector_waits_for_the_lease_to_end(store: Store) -> None:
    take(store, ONE, NOW)
    again = Poller("one", "another-run")
    assert take(store, again, NOW + 1) == frozenset()
    assert take(store, again, NOW + LEASE - 1) == frozenset()
    assert len(take(store, again, NOW + LEASE)) == SHARES


def test_who_leaves_in_order_is_not_waited_for(store: Store) -> None:
    take(store, ONE, NOW)
    with store.transaction() as tx:
        give_back_shares(tx, ONE)
    assert len(take(store, TWO, NOW + 1)) == SHARES
