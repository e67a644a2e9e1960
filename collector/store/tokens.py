"""The tokens that trade for a certificate, known by the SHA-256 of their text only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from collector.store.store import Row, Transaction

_COLUMNS = "id, hash, hostname, host, group_names, uses, uses_left, created_at, expires_at"
_ENDED = -1  # uses_left of a token that must not come back to life, whatever becomes of the clock
_NEW_COLUMNS = "hash, hostname, host, group_names, uses, uses_left, created_at, expires_at"


class NewToken(NamedTuple):
    """A token to be made. Times in milliseconds by the collector's clock.

    `hostname` is the only machine that may use it (empty: any); `host` the record that this machine
    takes over, if there is one already.
    """

    hash: bytes
    hostname: str
    host: int | None
    groups: tuple[str, ...]
    uses: int
    created_at: int
    expires_at: int


class StoredToken(NamedTuple):
    """A token as it is stored; see `NewToken`."""

    number: int
    hash: bytes
    hostname: str
    host: int | None
    groups: tuple[str, ...]
    uses: int
    uses_left: int
    created_at: int
    expires_at: int

    def is_valid(self, now: int) -> bool:
        """Whether it can be used at that moment."""
        return self.uses_left > 0 and now < self.expires_at

    @property
    def was_ended(self) -> bool:
        """Whether its host was revoked or rebound while it was still good."""
        return self.uses_left == _ENDED


def add_tokens(tx: Transaction, tokens: Sequence[NewToken]) -> None:
    """Accept tokens from now on."""
    tx.execute_many(
        f"INSERT INTO enrolment_token ({_NEW_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",  # noqa: S608 - names of ours
        [
            (
                token.hash,
                token.hostname,
                token.host,
                json.dumps(token.groups),
                token.uses,
                token.uses,
                token.created_at,
                token.expires_at,
            )
            for token in tokens
        ],
    )


def find_tokens(tx: Transaction, hashes: Sequence[bytes]) -> dict[bytes, StoredToken]:
    """The known tokens among these, whether they are still valid or not."""
    rows = tx.query_in(f"SELECT {_COLUMNS} FROM enrolment_token WHERE hash IN (%s)", hashes)  # noqa: S608 - names of ours
    return {token.hash: token for token in map(_token, rows)}


def spend_token(tx: Transaction, token: StoredToken, now: int) -> bool:
    """Use a token once; False if somebody else was quicker, it has expired or it was revoked."""
    return (
        tx.execute(
            "UPDATE enrolment_token SET uses_left = uses_left - 1 "
            "WHERE hash = %s AND uses_left > 0 AND expires_at > %s",
            (token.hash, now),
        )
        == 1
    )


def list_tokens(tx: Transaction) -> list[StoredToken]:
    """Every token that is remembered, the latest last."""
    rows = tx.query(f"SELECT {_COLUMNS} FROM enrolment_token")  # noqa: S608 - names of ours
    return sorted(map(_token, rows), key=lambda token: (token.created_at, token.number))


def delete_tokens(tx: Transaction, numbers: Sequence[int]) -> list[int]:
    """Accept these tokens no more; those that there were."""
    return [
        number
        for number in sorted(set(numbers))
        if tx.execute("DELETE FROM enrolment_token WHERE id = %s", (number,))
    ]


def end_tokens(tx: Transaction, host: int, now: int) -> None:
    """Accept no token for this host any more. They are kept, so that a refusal can say why."""
    tx.execute(
        "UPDATE enrolment_token SET expires_at = %s, uses_left = %s "
        "WHERE host = %s AND expires_at > %s AND uses_left > 0",
        (now, _ENDED, host, now),
    )


def bring_tokens_back(tx: Transaction, now: int, heard: int) -> None:
    """Let tokens that were made in the future have been made now, and be good for what was left of them.

    `heard` is when a collector was heard last by the clock that was ahead: what had ended by then stays ended.
    """
    tx.execute(
        "UPDATE enrolment_token SET expires_at = %s + CASE WHEN expires_at <= %s THEN 0 "
        "WHEN created_at > %s THEN expires_at - created_at ELSE expires_at - %s END, created_at = %s "
        "WHERE created_at > %s",
        (now, heard, heard, heard, now, now),
    )


def forget_ended_tokens(tx: Transaction, before: int, limit: int = 1_000) -> int:
    """Forget tokens that expired before that moment, when nobody asks any more why they are refused; how many."""
    rows = tx.query("SELECT id FROM enrolment_token WHERE expires_at < %s LIMIT %s", (before, limit))
    return tx.execute_many("DELETE FROM enrolment_token WHERE id = %s", rows)


def _token(row: Row) -> StoredToken:
    number, token_hash, hostname, host, groups, *rest = row
    return StoredToken(number, bytes(token_hash), hostname, host, tuple(json.loads(groups)), *rest)
