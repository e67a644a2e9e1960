"""The host keys that are trusted: lines of known_hosts, the same for every collector."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from collector.store.store import Transaction

_SPECIAL = ",*?!|@#[]"  # in the names of a line (man 8 sshd)


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


def rename_known_host(tx: Transaction, old: str, new: str, now: int, *, keep: bool = False) -> int:
    """Let the keys of the host called `old` be those of `new`, also at a port; how many lines that are.

    Patterns and hashed names stay as they are. `keep`: `old` is trusted as before, because another host is called
    so; a revoked key is revoked for both in any case. Nothing is done for a name that would mean others as well.
    """
    if old == new or not _is_plain(new):
        return 0
    gone, added = [], []
    for line in load_known_hosts(tx):
        words = line.split(" ")
        place = 1 if words[0].startswith("@") else 0
        names = words[place].split(",")
        renamed = [_renamed(name, old, new) for name in names]
        if renamed != names:
            both = keep or words[0] == "@revoked"
            words[place] = ",".join(dict.fromkeys((*names, *renamed) if both else renamed))
            gone.append(line)
            added.append(" ".join(words))
    forget_known_hosts(tx, gone)
    add_known_hosts(tx, added, now)
    return len(added)


def known_hosts_version(tx: Transaction) -> tuple[int, int]:
    """What differs when the lines do."""
    count, last = tx.query("SELECT COUNT(*), COALESCE(MAX(id), 0) FROM ssh_known_host")[0]
    return int(count), int(last)


def _renamed(name: str, old: str, new: str) -> str:
    if name == old:
        return new
    return f"[{new}]:{name.removeprefix(f'[{old}]:')}" if name.startswith(f"[{old}]:") else name


def _is_plain(name: str) -> bool:
    """Whether a name stands for itself in a line, and for nothing else."""
    return name.isprintable() and not any(letter.isspace() or letter in _SPECIAL for letter in name)


def _hash(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()
