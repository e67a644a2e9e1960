"""What has to be done so that the hosts of an inventory exist, with its groups and labels."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from collector.cli.steps import Outcome, find_records
from collector.core.status import Event, EventKind, HostRecord
from collector.store.hosts import (
    add_hosts,
    add_to_groups,
    find_hosts,
    load_assigned,
    take_from_groups,
    unassign_groups,
)
from collector.store.labels import delete_labels, load_labels, save_labels
from collector.store.reading import load_groups
from collector.store.ssh_hosts import note_change
from collector.store.statuses import write_events
from collector.store.store import Transaction
from fleetpulse.convert import MAX_NAME

_INTERVAL, _TTL = 15_000, 45_000  # milliseconds; what an agent says of itself unless it is told otherwise


class Wanted(NamedTuple):
    """A machine, and all of its groups and labels."""

    name: str
    groups: tuple[str, ...]
    labels: Mapping[str, str]


class Stored(NamedTuple):
    """What is stored of a host: all of its groups; those that were assigned, and whether its agent names them."""

    groups: tuple[str, ...] = ()
    assigned: Mapping[str, bool] = {}
    labels: Mapping[str, str] = {}


class Step(NamedTuple):
    """What has to be done for one machine. `host` is None for one that becomes a record.

    `released` are the groups in which it is from now on only because its agent says so; `labels` are written,
    and `drops` taken away.
    """

    name: str
    host: int | None
    host_id: str
    joins: tuple[str, ...]
    leaves: tuple[str, ...]
    released: tuple[str, ...]
    labels: Mapping[str, str]
    drops: tuple[str, ...]
    changes: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """A host without groups and labels is created, too."""
        if self.host is None:
            return Outcome.CREATED
        return Outcome.CHANGED if self.changes else Outcome.UNCHANGED


def plan(tx: Transaction, wanted: Sequence[Wanted]) -> list[Step]:
    """Compare what is wanted with what is stored. Raises CliError for a name that is no one host's."""
    records = find_records(tx, (one.name for one in wanted), new_name_problem)
    numbers = sorted(record.host for record in records.values())
    groups, assigned, labels = load_groups(tx, numbers), load_assigned(tx, numbers), load_labels(tx, numbers)
    steps = []
    for one in wanted:
        record = records.get(one.name)
        if record is None:
            steps.append(_step(one, one.name, None, str(uuid.uuid4()), Stored()))
        else:
            host = record.host
            stored = Stored(groups.get(host, ()), assigned.get(host, {}), labels.get(host, {}))
            steps.append(_step(one, record.hostname, host, record.host_id, stored))
    return steps


def carry_out(tx: Transaction, steps: Sequence[Step], now: int) -> None:
    """Write what has to be done. Call it in the transaction that made the plan, after `note_change`."""
    created = [step for step in steps if step.host is None]
    add_hosts(
        tx, [HostRecord(step.host_id, step.name, "", "", "", "", _INTERVAL, _TTL) for step in created], now
    )
    numbers = {
        host_id: found.host for host_id, found in find_hosts(tx, [step.host_id for step in created]).items()
    }
    known = [(step.host if step.host is not None else numbers[step.host_id], step) for step in steps]
    add_to_groups(tx, [(host, group) for host, step in known for group in step.joins])
    take_from_groups(tx, [(host, group) for host, step in known for group in step.leaves])
    unassign_groups(tx, [(host, group) for host, step in known for group in step.released])
    save_labels(tx, [(host, name, content) for host, step in known for name, content in step.labels.items()])
    delete_labels(tx, [(host, name) for host, step in known for name in step.drops])
    write_events(tx, [(numbers[step.host_id], step.name, Event(now, EventKind.ADDED)) for step in created])


def bring_about(tx: Transaction, wanted: Sequence[Wanted], now: int) -> list[Step]:
    """Plan and carry out, in one transaction; what was done."""
    steps = plan(tx, wanted)
    if all(step.outcome is Outcome.UNCHANGED for step in steps):
        return steps
    # Whoever does the same at this moment waits here, and then sees the records that were made. What is said of
    # groups over SSH may hold for other hosts now.
    note_change(tx)
    steps = plan(tx, wanted)
    carry_out(tx, steps, now)
    return steps


def new_name_problem(name: str) -> str:
    """Why no host can be called so; empty if one can."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return f"a name has 1 to {MAX_NAME} printable characters"
    return ""


def _step(wanted: Wanted, name: str, host: int | None, host_id: str, stored: Stored) -> Step:
    settled = {*stored.groups} & {*stored.assigned}
    joins = tuple(group for group in wanted.groups if group not in settled)
    surplus = [group for group in stored.assigned if group not in wanted.groups]
    leaves = tuple(group for group in surplus if not stored.assigned[group])
    released = tuple(group for group in surplus if stored.assigned[group])
    labels = {name: content for name, content in wanted.labels.items() if stored.labels.get(name) != content}
    drops = tuple(name for name in stored.labels if name not in wanted.labels)
    changes = (
        *(_joining(group, stored) for group in joins),
        *(f"leaves {group}" for group in leaves),
        *(f"is in {group} only as long as its agent says so" for group in released),
        *(_labelling(name, content, stored) for name, content in labels.items()),
        *(f"label {name} {stored.labels[name]} -> -" for name in drops),
    )
    return Step(name, host, host_id, joins, leaves, released, labels, drops, changes)


def _joining(group: str, stored: Stored) -> str:
    return f"is in {group} whatever its agent says" if group in stored.groups else f"joins {group}"


def _labelling(name: str, content: str, stored: Stored) -> str:
    if name in stored.labels:
        return f"label {name} {stored.labels[name]} -> {content}"
    return f"label {name}={content}"
