"""Tokens for a whole inventory at once; doing it again changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from collector.cli.change import change
from collector.cli.session import CliError
from collector.cli.token_files import TokenFolder
from collector.identity.tokens import hash_token, make_token
from collector.store.enrolment import AmbiguousName, KnownRecord, load_certified, load_known_names
from collector.store.store import Store, Transaction
from collector.store.tokens import (
    NewToken,
    StoredToken,
    add_tokens,
    delete_tokens,
    find_tokens,
)

_LEAST_LEFT = 600_000  # a token that ends sooner is replaced, unless it never had longer


class Wanted(NamedTuple):
    """The machines and their groups, the groups of all, how long tokens are good for (milliseconds).

    `again` is whether enrolled hosts get one, too, and all a new one.
    """

    machines: dict[str, tuple[str, ...]]
    groups: tuple[str, ...]
    ttl: int
    again: bool


class Issued(NamedTuple):
    """The machines, by what was done for them: they got a token, have one already, or need none.

    `spent` are those of the last that have a token which cannot be used any more.
    """

    created: dict[str, str]
    kept: list[str]
    enrolled: list[str]
    spent: list[str]


def issue(store: Store, wanted: Wanted, there: Mapping[str, str] = MappingProxyType({})) -> Issued:
    """Make a token for each machine that needs one; `there` are the tokens that machines have already.

    Raises CliError, StoreError.
    """
    fresh = {name: make_token() for name in wanted.machines}
    return change(store, lambda tx, now: _issue(tx, now, wanted, there, fresh))


def issue_into(folder: TokenFolder, store: Store, wanted: Wanted) -> Issued:
    """The same with the tokens in files. Raises CliError, StoreError.

    The database knows the tokens before the files are there: what is cut short is made anew by the next run.
    """
    there = {name: token for name in wanted.machines if (token := folder.read(name))}
    issued = issue(store, wanted, there)
    for name, token in issued.created.items():
        folder.write(name, token)
    for name in issued.spent:
        folder.remove(name)
    return issued


def _issue(
    tx: Transaction, now: int, wanted: Wanted, there: Mapping[str, str], fresh: Mapping[str, str]
) -> Issued:
    known = load_known_names(tx)
    # Certificates follow the clocks of those who check them.
    certified = load_certified(tx, time.time_ns() // 1_000_000)
    tokens = find_tokens(tx, [hash_token(text) for text in there.values()])
    issued = Issued({}, [], [], [])
    replaced: list[int] = []
    added: list[NewToken] = []
    named: dict[int, str] = {}  # by record
    for name, own_groups in wanted.machines.items():
        try:
            record = known.find(name)
        except AmbiguousName as error:
            raise CliError(f"{error}; rename or remove one of them") from None
        if record is not None and named.setdefault(record.host, name) != name:
            raise CliError(
                f"{named[record.host]} and {name} are one host here: {record.hostname} ({record.host_id}), whose "
                f"machine calls itself {record.own_name or record.hostname}; leave one of them out of the inventory"
            )
        stored = tokens.get(hash_token(there[name])) if name in there else None
        if record is not None and record.host in certified and not wanted.again:
            issued.enrolled.append(name)
            if name in there and (stored is None or not stored.is_valid(now)):
                issued.spent.append(name)
            continue
        groups = tuple(dict.fromkeys((*own_groups, *wanted.groups)))
        if (
            stored is not None
            and not wanted.again
            and _still_good(stored, name, record, groups, wanted.ttl, now)
        ):
            issued.kept.append(name)
            continue
        if stored is not None:
            replaced.append(stored.number)
        host = record.host if record else None
        added.append(NewToken(hash_token(fresh[name]), name, host, groups, 1, now, now + wanted.ttl))
        issued.created[name] = fresh[name]
    delete_tokens(tx, replaced)
    add_tokens(tx, added)
    return issued


def _still_good(
    token: StoredToken, name: str, record: KnownRecord | None, groups: tuple[str, ...], ttl: int, now: int
) -> bool:
    return (
        token.is_valid(now + min(_LEAST_LEFT, ttl // 2))
        and token.hostname.casefold() == name.casefold()
        and token.host == (record.host if record else None)
        and set(token.groups) == set(groups)
    )
