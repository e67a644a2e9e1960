"""Which hosts an admin asks for: those of groups, with labels."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from collector.store.hosts import text
from collector.store.store import Transaction


class LabelTerm(NamedTuple):
    """A label that a host has to have, with this content; None: with any."""

    name: str
    content: str | None = None

    def __str__(self) -> str:
        return self.name if self.content is None else f"{self.name}={self.content}"


class Selection(NamedTuple):
    """The hosts that are in any of the groups, and have all of the labels; every host if nothing is said."""

    groups: tuple[str, ...] = ()
    labels: tuple[LabelTerm, ...] = ()

    @property
    def is_all(self) -> bool:
        """Whether every host is meant."""
        return not self.groups and not self.labels


ALL = Selection()


def within(wanted: Selection, host: str = "h.id") -> tuple[str, tuple[str, ...]]:
    """Conditions that begin with AND, and their parameters, on a column that holds hosts' numbers."""
    conditions, parameters = "", list(wanted.groups)
    if wanted.groups:
        placeholders = ", ".join(["%s"] * len(wanted.groups))
        conditions = f" AND {host} IN (SELECT host FROM host_group WHERE name IN ({placeholders}))"  # noqa: S608 - names of ours
    for term in wanted.labels:
        with_content = "" if term.content is None else " AND content = %s"
        conditions += f" AND {host} IN (SELECT host FROM host_label WHERE name = %s{with_content})"  # noqa: S608 - names of ours
        parameters += [term.name] if term.content is None else [term.name, term.content]
    return conditions, tuple(parameters)


def selected(tx: Transaction, hosts: Collection[int], wanted: Selection) -> list[int]:
    """Those of the hosts that are meant."""
    if wanted.is_all or not hosts:
        return list(hosts)
    conditions, parameters = within(wanted)
    found = {host for (host,) in tx.query(f"SELECT h.id FROM host h WHERE 1 = 1{conditions}", parameters)}  # noqa: S608 - names of ours
    return [host for host in hosts if host in found]


def unknown_groups(tx: Transaction, wanted: Selection) -> list[str]:
    """Those of the groups that no host belongs to."""
    rows = tx.query_in("SELECT DISTINCT name FROM host_group WHERE name IN (%s)", wanted.groups)
    known = {text(name) for (name,) in rows}
    return [group for group in wanted.groups if group not in known]


def unknown_labels(tx: Transaction, wanted: Selection) -> list[LabelTerm]:
    """Those of the labels that no host has."""
    return [term for term in wanted.labels if not _exists(tx, term)]


def _exists(tx: Transaction, term: LabelTerm) -> bool:
    conditions, parameters = within(Selection(labels=(term,)))
    return bool(tx.query(f"SELECT 1 FROM host h WHERE 1 = 1{conditions} LIMIT 1", parameters))  # noqa: S608 - names of ours
