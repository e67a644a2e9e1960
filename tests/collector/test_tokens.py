"""Enrolment tokens: their text, and what both kinds of database do with them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from collector.identity.tokens import hash_token, is_token, make_token
from collector.store.errors import StoreConflict
from collector.store.hosts import add_hosts, remove_host
from collector.store.store import Store
from collector.store.tokens import (
    NewToken,
    StoredToken,
    add_tokens,
    delete_tokens,
    find_tokens,
    forget_ended_tokens,
    list_tokens,
    spend_token,
)
from tests.collector.fleet import record

NOW = 1_700_000_000_000
HOUR = 3_600_000


def new(text: str, **changes: object) -> NewToken:
    fields: dict[str, object] = {
        "hash": hash_token(text),
        "hostname": "",
        "host": None,
        "groups": (),
        "uses": 1,
        "created_at": NOW,
        "expires_at": NOW + HOUR,
    }
    return NewToken(**{**fields, **changes})  # type: ignore[arg-type]


def stored(store: Store, *tokens: NewToken) -> list[StoredToken]:
    """The tokens, stored."""
    with store.transaction() as tx:
        add_tokens(tx, tokens)
        found = find_tokens(tx, [token.hash for token in tokens])
    return [found[token.hash] for token in tokens]


def spend(store: Store, token: StoredToken, now: int = NOW) -> bool:
    with store.transaction() as tx:
        return spend_token(tx, token, now)


def test_a_token_has_256_random_bits_and_a_known_shape() -> None:
    tokens = {make_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(token) and len(token) == 47 for token in tokens)
    assert len({hash_token(token) for token in tokens}) == 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fpt_",
        "fpt_" + "a" * 42,
        "fpt_" + "a" * 44,
        "FPT_" + "a" * 43,
        "fpt_" + "ä" * 43,
        " fpt_" + "a" * 43,
        "fpt_" + "a" * 43 + "\n",
        "fpt_" + "a" * 42 + "=",
    ],
)
def test_anything_else_is_no_token(text: str) -> None:
    assert not is_token(text)


def test_what_is_stored_comes_back(store: Store) -> None:
    text = make_token()
    [token] = stored(store, new(text, hostname="Web-É", groups=("a", "日本"), uses=3))
    assert (token.hostname, token.host, token.groups) == ("Web-É", None, ("a", "日本"))
    assert (token.uses, token.uses_left, token.created_at, token.expires_at) == (3, 3, NOW, NOW + HOUR)
    with store.transaction() as tx:
        assert list_tokens(tx) == [token]
        assert find_tokens(tx, [hash_token(make_token())]) == {}
        assert text not in repr(tx.query("SELECT * FROM enrolment_token"))


def test_a_token_is_good_for_so_many_uses_and_no_more(store: Store) -> None:
    one, two = stored(store, new("one"), new("two", uses=2))
    assert [spend(store, one), spend(store, one)] == [True, False]
    assert [spend(store, two) for _ in range(3)] == [True, True, False]


def test_a_token_is_good_until_it_expires(store: Store) -> None:
    [token] = stored(store, new("one", uses=2))
    assert not spend(store, token, NOW + HOUR)
    assert spend(store, token, NOW + HOUR - 1)
    assert token.is_valid(NOW + HOUR - 1)
    assert not token.is_valid(NOW + HOUR)


def test_who_spends_at_once_gets_what_there_is(store: Store) -> None:
    [token] = stored(store, new("one", uses=10))
    start = threading.Barrier(4)

    def spender(_: int) -> int:
        start.wait()
        spent = 0
        for _ in range(5):
            try:
                spent += spend(store, token)
            except StoreConflict:  # rolled back, so not spent
                continue
        return spent

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(spender, range(4))) == 10
    with store.transaction() as tx:
        assert list_tokens(tx)[0].uses_left == 0


def test_a_transaction_that_fails_spends_nothing(store: Store) -> None:
    [token] = stored(store, new("one"))

    def spend_and_fail() -> None:
        with store.transaction() as tx:
            assert spend_token(tx, token, NOW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spend_and_fail()
    assert spend(store, token)


def test_revoked_tokens_are_gone(store: Store) -> None:
    one, two = stored(store, new("one"), new("two"))
    with store.transaction() as tx:
        assert delete_tokens(tx, [one.number, 999, one.number]) == [one.number]
    assert not spend(store, one)
    assert spend(store, two)


def test_ended_tokens_are_forgotten_after_a_while(store: Store) -> None:
    old, current = stored(store, new("old", expires_at=NOW - 1), new("current"))
    with store.transaction() as tx:
        assert forget_ended_tokens(tx, NOW - 1) == 0
        assert forget_ended_tokens(tx, NOW) == 1
        assert list_tokens(tx) == [current]
    assert old.number != current.number


def test_a_removed_hosts_tokens_go_with_it(store: Store) -> None:
    with store.transaction() as tx:
        add_hosts(tx, [record()], NOW)
        [(host,)] = tx.query("SELECT id FROM host")
    stored(store, new("bound", host=host), new("free"))
    with store.transaction() as tx:
        remove_host(tx, host)
        assert [token.host for token in list_tokens(tx)] == [None]
