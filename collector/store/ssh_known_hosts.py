"""The host keys that are trusted: lines of known_hosts, the same for every collector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from collector.store.store import Transaction


def load_known_hosts(tx: Transaction) -> list[str]:
    """Every line, in the order in which they were added."""
    return [str(line) for (line,) in tx.query("SELECT line FROM ssh_known_host ORDER BY id")]


def add_known_hosts(tx: Transaction, lines: Iterable[str], now: int) -> int:
    """Trust these keys from now on; how many were not trusted before."""
    return tx.execute_many(
        f"{tx.dialect.insert_ignore} INTO ssh_known_host (hash, line, added_at) VALUES (%s, %s, %s)",
        [(_hash(line), line, now) for line in lines],
    )


def forget_known_hosts(tx: Transaction, lines: Iterable[str]) -> int:
    """Trust these keys no more; how many were trusted."""
    return tx.execute_many("DELETE FROM ssh_known_host WHERE hash = %s", [(_hash(line),) for line in lines])


def known_hosts_version(tx: Transaction) -> tuple[int, int]:
    """What differs when the lines do."""
    count, last = tx.query("SELECT COUNT(*), COALESCE(MAX(id), 0) FROM ssh_known_host")[0]
    return int(count), int(last)


def _hash(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()
