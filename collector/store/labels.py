"""Labels of hosts: what an inventory says that they are, as pairs of name and content."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from collector.store.hosts import delete_named, text
from collector.store.reading import of_hosts
from collector.store.store import Transaction


def load_labels(tx: Transaction, hosts: Collection[int]) -> dict[int, dict[str, str]]:
    """The labels of each of the hosts that has any, by their names."""
    rows = of_hosts(tx, "SELECT host, name, content FROM host_label WHERE 1 = 1", hosts)
    found: dict[int, dict[str, str]] = {}
    for host, name, content in sorted((host, text(name), text(content)) for host, name, content in rows):
        found.setdefault(host, {})[name] = content
    return found


def save_labels(tx: Transaction, rows: Sequence[tuple[int, str, str]]) -> None:
    """Write labels as (host, name, content), over those of the same name."""
    tx.execute_many(tx.dialect.upsert("host_label", ("host", "name"), ("content",)), rows)


def delete_labels(tx: Transaction, rows: Sequence[tuple[int, str]]) -> None:
    """Take labels from hosts, as (host, name)."""
    delete_named(tx, "host_label", rows)
