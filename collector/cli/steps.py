"""What an inventory changes: which records its names mean, and what is done for each, as it is shown."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from collector.cli.output import Cell
from collector.cli.session import CliError
from collector.core.render import count
from collector.core.status import Event, EventKind
from collector.store.enrolment import AmbiguousName, KnownRecord, load_known_names
from collector.store.reading import HostLine
from collector.store.statuses import write_events
from collector.store.store import Transaction
from fleetpulse.model import is_host_id

_SHOWN = 5  # machines that are refused


class Outcome(enum.StrEnum):
    """What has to be done for a machine."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


class Done(Protocol):
    """What has to be done for one machine, or was; `changes` is for people."""

    @property
    def name(self) -> str:
        """What its record is called."""

    @property
    def outcome(self) -> Outcome:
        """Whether anything has to be done."""

    @property
    def changes(self) -> tuple[str, ...]:
        """What differs."""


def find_records(
    tx: Transaction, names: Iterable[str], problem: Callable[[str], str]
) -> dict[str, KnownRecord]:
    """The records that are known by these names.

    `problem` says why no new record can be called so, if it cannot. Raises CliError for a name that is no one
    host's, and for two that are the same one's.
    """
    find = load_known_names(tx).find
    records = {name: record for name in names if (record := _find(find, name, problem)) is not None}
    _check_twice(records)
    return records


def write_removed(tx: Transaction, hosts: Iterable[HostLine], now: int) -> None:
    """The events of hosts that are gone."""
    write_events(
        tx,
        [(host.host, host.hostname, Event(now, EventKind.REMOVED, old=host.hostname)) for host in hosts],
    )


def tally(steps: Sequence[Done], removed: int, *, is_dry_run: bool) -> str:
    """How many machines were created, changed and so on."""
    outcomes = Counter(step.outcome for step in steps)
    text = ", ".join(f"{outcomes[outcome]} {outcome.value}" for outcome in Outcome)
    if removed:
        text += f", {removed} removed"
    return f"would be: {text}" if is_dry_run else text


def rows(steps: Sequence[Done], removed: Sequence[HostLine]) -> list[tuple[Cell, ...]]:
    """Each machine, and what differs, under HOST, WHAT, CHANGES."""
    cells: list[tuple[Cell, ...]] = [
        (Cell(step.name, "strong"), Cell(step.outcome.value), Cell(", ".join(step.changes) or "-"))
        for outcome in Outcome
        for step in steps
        if step.outcome is outcome
    ]
    cells += [(Cell(host.hostname, "strong"), Cell("removed"), Cell("-")) for host in removed]
    return cells


def names_json(steps: Sequence[Done], removed: Sequence[HostLine]) -> dict[str, object]:
    """The machines' names, by what was done."""
    return {
        **{outcome.value: [step.name for step in steps if step.outcome is outcome] for outcome in Outcome},
        "removed": [host.hostname for host in removed],
    }


def refusal(refused: Sequence[str]) -> CliError:
    """Why nothing was changed, which each of the texts says of a machine."""
    more = len(refused) - _SHOWN
    some = "; ".join(refused[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return CliError(f"nothing was changed, because of {count(len(refused), 'machine')}: {some}")


def _find(
    find: Callable[[str], KnownRecord | None], name: str, problem: Callable[[str], str]
) -> KnownRecord | None:
    if not name:
        raise CliError(f"{name!r}: {problem(name)}")
    try:
        record = find(name)
    except AmbiguousName as error:
        raise CliError(f"{error}; rename or remove one of them") from None
    if record is None:
        if is_host_id(name):
            raise CliError(f"no host {name}; see: collector-cli hosts")
        if said := problem(name):
            raise CliError(f"{name!r}: {said}")
    return record


def _check_twice(records: Mapping[str, KnownRecord]) -> None:
    named: dict[int, str] = {}
    for name, record in records.items():
        other = named.setdefault(record.host, name)
        if other != name:
            raise CliError(
                f"{other} and {name} are one host here: {record.hostname} ({record.host_id}), whose machine "
                f"calls itself {record.own_name or record.hostname}; leave one of them out"
            )
