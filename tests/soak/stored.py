"""What a collector has stored of the simulated hosts, in the ledger's words. Pure: queries, and rows in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tests.soak.hive import host_id
from tests.soak.ledger import Change

MARKS = "SELECT h.host_id, s.epoch, s.seq FROM host h JOIN host_seen s ON s.host = h.id"
CHANGES = (
    "SELECT h.host_id, e.kind, e.subject, e.old_value, e.new_value, e.measured_at"
    " FROM event e JOIN host h ON h.id = e.host WHERE e.kind <> 'renewed' ORDER BY e.id"
)


def numbers_of(hosts: Iterable[int]) -> dict[str, int]:
    """The numbers of hosts by their identity."""
    return {host_id(number): number for number in hosts}


def read_marks(rows: Iterable[Sequence[object]], numbers: Mapping[str, int]) -> dict[int, tuple[int, int]]:
    """(epoch, seq) by host, from the rows of `MARKS`."""
    return {numbers[str(row[0])]: (row[1], row[2]) for row in rows if str(row[0]) in numbers}  # type: ignore[misc] - integers, as the schema has them


def read_changes(rows: Iterable[Sequence[object]], numbers: Mapping[str, int]) -> dict[int, list[Change]]:
    """Every host's events in order, from the rows of `CHANGES`."""
    changes: dict[int, list[Change]] = {number: [] for number in numbers.values()}
    for identity, kind, subject, old, new, at in rows:
        number = numbers.get(str(identity))
        if number is not None:
            check = bytes(subject).decode()  # type: ignore[call-overload] - as the schema has it
            when = at if kind in ("state", "new-epoch") else 0
            changes[number].append(Change(str(kind), check, str(old), str(new), when))  # type: ignore[arg-type] - the same
    return changes
