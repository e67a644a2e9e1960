"""Two machines with one identity: which is accepted, which is refused, and how to end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from collector.cli.output import Cell, Line, Table, line
from collector.cli.times import local, utc
from collector.core.render import count, duration, listed
from collector.store import reading
from collector.store.conflicts import ConflictRow, load_conflicts
from collector.store.reading import HostLine, Place
from collector.store.selection import ALL, Selection, selected
from collector.store.store import Transaction

_RIVALS_SHOWN = 5  # of one host; a cloned image may run on hundreds of machines
_ROWS_BESIDE = 4  # where not all fit
_FINGERPRINT = 12  # hexadecimal digits that are enough to tell two machines apart


class Conflict(NamedTuple):
    """A host, the machine that is accepted as it, and those that are refused, who tried last first."""

    host: HostLine
    place: Place
    refused: tuple[ConflictRow, ...]

    @property
    def since(self) -> int:
        """When the first of those that still try was refused first."""
        return min(row.first_at for row in self.refused)

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "hostname": self.host.hostname,
            "host_id": self.host.host_id,
            "since": utc(self.since),
            "accepted": {
                "hostname": self.place.own_name or self.host.hostname,
                "address": self.host.address,
                "hardware_id": self.place.hardware_id,
                "machine_id": self.place.machine_id,
                "boot_id": self.place.boot_id,
                "last_report_at": utc(self.host.received_at),
            },
            "refused": [
                {
                    "hostname": row.hostname,
                    "address": row.address,
                    "hardware_id": row.hardware_id,
                    "machine_id": row.machine_id,
                    "boot_id": row.boot_id,
                    "since": utc(row.first_at),
                    "last_tried_at": utc(row.last_at),
                }
                for row in self.refused
            ],
        }


def find_conflicts(tx: Transaction, wanted: Selection = ALL) -> tuple[Conflict, ...]:
    """Every conflict of these hosts, or of any, by the hosts' names."""
    rows = load_conflicts(tx)
    return _conflicts(tx, rows, selected(tx, rows, wanted))


def conflict_of(tx: Transaction, host: int) -> Conflict | None:
    """The host's conflict, if it is in one."""
    return next(iter(_conflicts(tx, load_conflicts(tx, [host]), [host])), None)


def _conflicts(
    tx: Transaction, rows: Mapping[int, list[ConflictRow]], hosts: Sequence[int]
) -> tuple[Conflict, ...]:
    chosen = [host for host in hosts if host in rows]
    lines, places = reading.load_lines(tx, chosen), reading.load_places(tx, chosen)
    found = [
        Conflict(lines[host], places[host], tuple(rows[host]))
        for host in chosen
        if host in lines and host in places
    ]
    return tuple(sorted(found, key=lambda conflict: (conflict.host.hostname, conflict.host.host_id)))


def names(conflicts: Sequence[Conflict]) -> str:
    """For a summary: "2 in conflict: web-1, web-2"."""
    return f"{len(conflicts)} in conflict: {listed([conflict.host.hostname for conflict in conflicts])}"


def section(conflicts: Sequence[Conflict], now: int, rows: int | None = None) -> list[Line | Table]:
    """A heading, what to do, and both machines of each conflict; nothing without a conflict.

    `rows` is how many machines are shown; None: all.
    """
    if not conflicts:
        return []
    cells = [row for conflict in conflicts for row in _rows(conflict, now)]
    page: list[Line | Table] = [
        line(),
        line(
            Cell(f"{count(len(conflicts), 'host')} in conflict", "warning"),
            ": another machine has the same identity, and is refused.",
        ),
        line(
            "Give that machine one of its own: fleet-agent enroll --new-identity (without TLS: delete its host_id)"
        ),
        line(
            "If it is the right one, stop the other's agent, then: collector-cli token create --host HOST, and on it"
            " fleet-agent enroll --force"
        ),
        Table(("HOST", "MACHINE", "ADDRESS", "FINGERPRINT", "SINCE", "HEARD"), cells[:rows]),
    ]
    if rows is not None and len(cells) > rows:
        page.append(line(Cell(f"and {len(cells) - rows} more", "dim")))
    return page


def beside(
    conflicts: Sequence[Conflict], now: int, rows: int | None
) -> tuple[list[Line | Table], int | None]:
    """The section below another table, and how many of the `rows` that fit are left for that one."""
    if rows is None or not conflicts:
        return section(conflicts, now), rows
    below = section(conflicts, now, _ROWS_BESIDE)
    return below, max(3, rows - len(below) - _ROWS_BESIDE)


def _rows(conflict: Conflict, now: int) -> list[tuple[Cell, ...]]:
    host, place, refused = conflict
    kind = _telling(conflict)
    heard = f"{duration(now - host.received_at)} ago" if host.received_at else "never"
    cells: list[tuple[Cell, ...]] = [
        (
            Cell(host.hostname, "strong"),
            Cell("accepted", "ok"),
            Cell(host.address or "-"),
            _fingerprint(kind, getattr(place, kind)),
            Cell("-", "dim"),
            Cell(heard),
        )
    ]
    cells += [
        (
            Cell(host.hostname, "strong"),
            Cell("refused", "warning"),
            Cell(row.address or "-"),
            _fingerprint(kind, getattr(row, kind)),
            Cell(local(row.first_at), "dim"),
            Cell(f"{duration(now - row.last_at)} ago"),
        )
        for row in refused[:_RIVALS_SHOWN]
    ]
    hidden = len(refused) - _RIVALS_SHOWN
    if hidden > 0:
        more = f"and {hidden} more"
        cells.append((Cell(host.hostname, "strong"), Cell(more, "warning"), *[Cell("-", "dim")] * 4))
    return cells


def _telling(conflict: Conflict) -> str:
    """What tells the machines apart: a fingerprint, else the address, else the run of the agent."""
    place, refused = conflict.place, conflict.refused
    for kind in ("hardware_id", "machine_id", "boot_id", "address", "instance"):
        known = getattr(place, kind)
        if known and any(getattr(row, kind) not in ("", known) for row in refused):
            return kind
    return "hardware_id" if place.hardware_id else "machine_id"


def _fingerprint(kind: str, text: str) -> Cell:
    shown = text if kind == "address" else text[:_FINGERPRINT]
    return Cell(f"{kind.removesuffix('_id')} {shown}" if text else "-")
