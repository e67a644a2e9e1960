"""Compare what a host says with what is stored of it. The heart of fleetpulse, and pure.

Nothing here knows where the previous status came from or where the changes go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from collector.core.rules import Plan, Verdict
from collector.core.status import CheckStatus, Event, EventKind, HostRecord, HostStatus, Silence
from fleetpulse.model import CheckKey, CheckResult, Facts, Report, State


@dataclass(slots=True)
class Changes:
    """What has to be written for one host, besides its latest values. Grows report by report.

    `checks` holds the new status of each check that differs, None for a check that is gone.
    """

    checks: dict[CheckKey, CheckStatus | None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.checks or self.events)


def take_report(status: HostStatus, report: Report, plan: Plan, now: int, changes: Changes) -> HostStatus:
    """The host's status after `report`; what differs is added to `changes`.

    The report must be of the status's epoch, `plan` that of its layout. A report at or below the
    high-water mark was in effect already: the status comes back as it was (`is`), and nothing is added.
    """
    if report.seq <= status.seq:
        return status
    layout_id = plan.layout.id
    if (
        status.seq
        and status.is_calm
        and status.layout_id == layout_id
        and not report.results
        and not report.dropped
        and not status.silence
        and plan.is_quiet(report.values)
    ):
        # By far the most frequent case: nothing to say, so nothing is looked at twice.
        return HostStatus(
            status.epoch, report.seq, now, report.measured_at, Silence.NONE, layout_id, status.checks, True
        )
    changes.events.extend(_delivery_events(status, report, now))
    known = status.checks
    # A host's first report, or the first after the agent lost its memory, is a baseline: what it
    # lists is no news, but states that differ from the stored ones are.
    is_baseline = not status.seq
    checks, calm = _judge_checks(known, plan, report.values, report.results, now, changes)
    for key, check in checks.items():
        previous = known.get(key)
        if previous is None and not is_baseline:
            changes.events.append(
                Event(now, EventKind.CHECK_APPEARED, key.name, key.instance, measured_at=report.measured_at)
            )
        changes.events.extend(_state_events(key, previous, check, now, report.measured_at))
    for key in known.keys() - checks.keys():
        changes.checks[key] = None
        old = known[key].state.name
        changes.events.append(
            Event(now, EventKind.CHECK_REMOVED, key.name, key.instance, old, measured_at=report.measured_at)
        )
    return HostStatus(
        status.epoch, report.seq, now, report.measured_at, Silence.NONE, layout_id, checks, calm
    )


def take_hearsay(status: HostStatus, report: Report, plan: Plan, now: int, changes: Changes) -> HostStatus:
    """The host's status after what somebody else said of it, while it does not report itself.

    Of a host whose checks are known, only checks of those names are judged, so that nothing appears that
    its own next report would remove. All other checks stay, and so do the mark and the silence.
    """
    known = status.checks
    names = {key.name for key in known}
    heard, calm = _judge_checks(known, plan, report.values, report.results, now, Changes())
    checks = dict(known)
    for key, check in heard.items():
        previous = known.get(key)
        if previous == check or (previous is None and status.received_at and key.name not in names):
            continue
        checks[key] = changes.checks[key] = check
        changes.events.extend(_state_events(key, previous, check, now, report.measured_at))
    return status._replace(
        layout_id=plan.layout.id if report.values else status.layout_id,
        checks=checks,
        is_calm=calm and all(check.is_calm for check in checks.values()),
    )


def begin_epoch(status: HostStatus, epoch: int) -> HostStatus:
    """The status after a Hello that names `epoch`: `is` the same unless that is another one.

    Only a Hello changes the epoch. A report that was on its way under an older one, through whichever
    collector, then no longer fits, and cannot turn it back.
    """
    return status if status.epoch == epoch else status._replace(epoch=epoch, seq=0)


def judge_again(
    status: HostStatus,
    plan: Plan,
    values: Sequence[float],
    results: Sequence[CheckResult],
    now: int,
    changes: Changes,
) -> HostStatus:
    """The status after the rules changed: the host's latest report, judged by the new plan."""
    checks, calm = _judge_checks(status.checks, plan, values, results, now, changes, is_new=False)
    for key, check in checks.items():
        changes.events.extend(_state_events(key, status.checks.get(key), check, now, 0))
    # What the latest report does not list was said by another one: by the agent, before it fell silent.
    checks = {**status.checks, **checks}
    return status._replace(checks=checks, is_calm=calm and all(check.is_calm for check in checks.values()))


def compare_records(old: HostRecord | None, new: HostRecord, now: int) -> list[Event]:
    """The events of a Hello: a new host, a reboot, another name, address, agent version or hardware.

    What was not known yet, as of a host that has only enrolled, is no news.
    """
    if old is None:
        return [Event(now, EventKind.ADDED)]
    events = []
    if old.boot_id and new.boot_id and old.boot_id != new.boot_id:
        events.append(Event(now, EventKind.REBOOT, old=old.boot_id, new=new.boot_id))
    events.extend(
        Event(now, EventKind.FACT, name, old=before, new=after)
        for name, before, after in (
            ("host.name", old.hostname, new.hostname),
            ("host.address", old.address, new.address),
            ("agent.version", old.agent_version, new.agent_version),
            ("host.hardware_id", old.hardware_id, new.hardware_id),
        )
        if before and before != after
    )
    return events


def compare_facts(old: Facts, new: Facts, now: int) -> tuple[dict[str, str | None], list[Event]]:
    """The facts to write (None: gone) and an event for each; the first inventory is a baseline."""
    changed: dict[str, str | None] = {
        name: new.get(name) for name in old.keys() | new.keys() if old.get(name) != new.get(name)
    }
    if not old:
        return changed, []
    events = [
        Event(now, EventKind.FACT, name, old=old.get(name, ""), new=new.get(name, ""))
        for name in sorted(changed)
    ]
    return changed, events


def _judge_checks(
    known: Mapping[CheckKey, CheckStatus],
    plan: Plan,
    values: Sequence[float],
    results: Sequence[CheckResult],
    now: int,
    changes: Changes,
    *,
    is_new: bool = True,
) -> tuple[dict[CheckKey, CheckStatus], bool]:
    own = {result.check: result for result in results}
    suspects = plan.breached(values) | own.keys()
    unknown_before = CheckStatus(State.OK, now)
    checks: dict[CheckKey, CheckStatus] = {}
    calm = True
    for index, check in enumerate(plan.layout.checks):
        previous = known.get(check.key)
        if previous is not None and index not in suspects and previous.is_calm:
            checks[check.key] = previous  # nothing speaks against OK, and nothing else waits
            continue
        verdict = plan.judge(index, values, own.get(index), previous or unknown_before)
        status = _confirm(previous or unknown_before, verdict, now, is_new)
        if status != previous:
            changes.checks[check.key] = status
        checks[check.key] = status
        calm = calm and status.is_calm
    return checks, calm


def _confirm(previous: CheckStatus, verdict: Verdict, now: int, is_new: bool) -> CheckStatus:
    """The status after a verdict: a new state counts once it was seen often enough in a row.

    `is_new` is whether this is one more sighting, and not the last report judged again.
    """
    if verdict.state is previous.state:
        # A check's own word is its own affair. The message of a breach names the value that crossed
        # the threshold; it is not written anew with every value.
        own_word = verdict.is_own or verdict.state is State.OK
        message = verdict.message if own_word else previous.message
        return CheckStatus(previous.state, previous.since, message, occurrences=previous.occurrences)
    count = previous.pending_count + is_new if previous.pending is verdict.state else 1
    if count < (verdict.occurrences or previous.occurrences):
        return previous._replace(pending=verdict.state, pending_count=count)
    return CheckStatus(verdict.state, now, verdict.message, occurrences=verdict.occurrences or 1)


def _state_events(
    key: CheckKey, previous: CheckStatus | None, status: CheckStatus, now: int, measured_at: int
) -> Iterator[Event]:
    before = previous.state if previous else State.OK
    if status.state is not before:
        yield Event(
            now,
            EventKind.STATE,
            key.name,
            key.instance,
            before.name,
            status.state.name,
            status.message,
            measured_at,
        )


def _delivery_events(status: HostStatus, report: Report, now: int) -> Iterator[Event]:
    if status.silence is Silence.ALONE:
        yield Event(now, EventKind.BACK, measured_at=report.measured_at)
    if status.received_at and not status.seq:
        yield Event(now, EventKind.NEW_EPOCH, measured_at=report.measured_at)
    if report.dropped:
        yield Event(now, EventKind.DROPPED, new=str(report.dropped), measured_at=report.measured_at)
