"""One batch of reports from many hosts in one transaction: load, diff, write.

Owned by one writer thread. A host always goes to the same writer, so nobody else in this process
writes its rows; the version of each row tells when another process did.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from collector.core import diff
from collector.core.diff import Changes
from collector.core.rules import Plan, RuleSet
from collector.core.status import CheckStatus, Event, HostStatus
from collector.ingest.items import (
    EpochOver,
    Hearsay,
    Held,
    HelloNeeded,
    HelloOver,
    HelloRefused,
    HostGone,
    Item,
    Registered,
    Registration,
    Rejudgement,
    Submission,
)
from collector.ingest.registrar import Admission, Registrar
from collector.store import hosts, statuses
from collector.store.dialect import LatestRow, SeenRow
from collector.store.errors import StoreConflict
from collector.store.hosts import Caller
from collector.store.statuses import Versioned
from collector.store.store import Store, Transaction
from fleetpulse.model import CheckKey, Facts, Layout, Report

_CACHED_HOSTS = 100_000  # per writer; about 4 kB each with a dozen checks
_CACHED_LAYOUTS = 10_000  # their numbers alone
_CACHED_PLANS = 64 << 20  # bytes; far more than the layouts that a fleet has in common

Answer = Registered | Held | HelloRefused | int | bool | HelloNeeded | None


@dataclass(slots=True)
class _Writes:
    """What one transaction writes, collected over its items."""

    admissions: Mapping[Registration, Admission | Held | HelloRefused] = field(default_factory=dict)
    before: dict[int, Versioned] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    """Hosts whose status was read from the database, and is not what this writer has committed itself."""
    callers: dict[int, Caller] = field(default_factory=dict)
    """Who reports for those of them that report."""
    after: dict[int, HostStatus] = field(default_factory=dict)
    latest: dict[int, Report] = field(default_factory=dict)
    checks: dict[int, dict[CheckKey, CheckStatus | None]] = field(default_factory=dict)
    events: list[tuple[int | None, str, Event]] = field(default_factory=list)
    new_layouts: dict[bytes, int] = field(default_factory=dict)

    changes: Changes = field(default_factory=Changes)
    """Where the host at hand notes its changes: few have any, so one will do for all."""

    def take_changes(self, host: int, hostname: str) -> None:
        changes, self.changes = self.changes, Changes()
        if changes.checks:
            self.checks.setdefault(host, {}).update(changes.checks)
        self.events.extend([(host, hostname, event) for event in changes.events])


class BatchWriter:
    """Applies batches, and remembers the statuses that it wrote (a write-through cache)."""

    def __init__(self, store: Store, rules: Callable[[], RuleSet], now: Callable[[], int]):
        self._store = store
        self._current_rules = rules
        self._now = now
        self._rules: RuleSet | None = None
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()  # the least recently used first
        self._planned = 0  # bytes
        self._layouts: dict[bytes, int] = {}
        self._cache: dict[int, Versioned] = {}

    def apply(self, items: Sequence[Item]) -> list[Answer]:
        """Commit all the items' effects, or none; an answer per item.

        Raises StoreError, and leaves the cache as it was; see `forget`.
        """
        self._refresh_rules()
        writes = _Writes()
        with self._store.transaction() as tx:
            hellos = [item for item in items if isinstance(item, Registration) and not item.is_abandoned]
            if hellos:
                writes.admissions, events = Registrar(tx, self._now()).register(hellos)
                writes.events.extend(events)
            self._load(tx, items, writes)
            answers = [self._apply_one(tx, item, writes) for item in items]
            self._write(tx, writes)
        self._remember(writes)
        return answers

    def forget(self, items: Iterable[Item]) -> None:
        """Drop what is remembered of these items' hosts: the database may hold something else by now."""
        for item in items:
            if isinstance(item, (Submission, Hearsay)):
                self._cache.pop(item.host, None)
        self._layouts.clear()

    def _refresh_rules(self) -> None:
        current = self._current_rules()
        if current is not self._rules:
            self._rules = current
            self._plans.clear()
            self._planned = 0

    def _load(self, tx: Transaction, items: Iterable[Item], writes: _Writes) -> None:
        # Another collector may have taken a newcomer's reports until now, and a rejudgement is rare:
        # both are read anew.
        missing = {answer.host for answer in writes.admissions.values() if isinstance(answer, Admission)}
        for item in items:
            if isinstance(item, Rejudgement):
                missing.update(host for host, _ in item.hosts)
        for item in items:
            if isinstance(item, (Submission, Hearsay)) and item.host not in missing:
                known = self._cache.get(item.host)
                if known is None:
                    missing.add(item.host)
                else:
                    writes.before[item.host] = known
        if missing:
            writes.before.update(statuses.load_statuses(tx, sorted(missing)))
            writes.read = missing
            reporting = {item.host for item in items if isinstance(item, Submission)} & missing
            writes.callers = hosts.load_callers(tx, sorted(reporting))

    def _apply_one(self, tx: Transaction, item: Item, writes: _Writes) -> Answer:
        if isinstance(item, Submission):
            return self._take_reports(tx, item, writes)
        if isinstance(item, Hearsay):
            return self._take_hearsay(item, writes)
        if isinstance(item, Rejudgement):
            self._judge_again(tx, item, writes)
            return None
        if item.is_abandoned:
            return None
        admission = writes.admissions[item]
        if not isinstance(admission, Admission):
            return admission
        host = admission.host
        if host not in writes.before:
            raise StoreConflict("a host was removed while it said Hello")
        known = writes.after.get(host, writes.before[host].status)
        # Written even where it is the same: others see a commit before it is safe on the disk, and it may
        # be one whose answer never came. What we tell the agent must be as durable as a commit of our own.
        writes.after[host] = status = diff.begin_epoch(known, item.epoch)
        return Registered(host, status.seq, admission.name, admission.certificate)

    def _take_reports(self, tx: Transaction, item: Submission, writes: _Writes) -> int | HelloNeeded:
        host = item.host
        before = writes.before.get(host)
        if before is None:
            return HostGone()
        status = writes.after.get(host, before.status)
        if status.epoch != item.epoch:
            return EpochOver()
        if writes.callers and _is_outdated(item, writes.callers.get(host)):
            return HelloOver()
        if item.facts is not None and not self._take_facts(tx, item, item.facts, status, writes):
            return HostGone()
        if not item.reports:
            return 0
        changes = writes.changes
        for report in item.reports:
            after = diff.take_report(status, report, self._plan(report.layout), item.received_at, changes)
            if after is not status:
                status = after
                writes.latest[host] = report
        if changes:
            writes.take_changes(host, item.hostname)
        if status is not before.status or host in writes.read:  # see `_apply_one`
            writes.after[host] = status
        return status.seq

    def _take_hearsay(self, item: Hearsay, writes: _Writes) -> bool:
        before = writes.before.get(item.host)
        if before is None:
            return False
        status = writes.after.get(item.host, before.status)
        if status.received_at != item.heard_at:
            return False  # the host speaks for itself
        plan = self._plan(item.report.layout)
        after = diff.take_hearsay(status, item.report, plan, item.found_at, writes.changes)
        if writes.changes:
            writes.take_changes(item.host, item.hostname)
        if item.report.values:
            writes.latest[item.host] = item.report
        writes.after[item.host] = after
        return True

    def _take_facts(
        self, tx: Transaction, item: Submission, facts: Facts, status: HostStatus, writes: _Writes
    ) -> bool:
        if item.is_abandoned:
            return True  # the next stream tells them, and may have told newer ones already
        stored_hash = hosts.load_facts_hashes(tx, [item.host]).get(item.host)
        if stored_hash is None:
            return False
        new_hash = hosts.facts_hash(facts)
        if new_hash == stored_hash:
            return True
        changed, events = diff.compare_facts(hosts.load_facts(tx, item.host), facts, item.received_at)
        hosts.write_facts(tx, item.host, changed, new_hash)
        writes.events.extend([(item.host, item.hostname, event) for event in events])
        # Written like a report: then they count only if the host is still as it was read.
        writes.after[item.host] = status
        return True

    def _judge_again(self, tx: Transaction, item: Rejudgement, writes: _Writes) -> None:
        latest = statuses.load_latest(tx, [host for host, _ in item.hosts])
        now = self._now()
        for host, hostname in item.hosts:
            report, before = latest.get(host), writes.before.get(host)
            if report is None or before is None or host in writes.latest:
                continue
            known = writes.after.get(host, before.status)
            status = diff.judge_again(
                known, self._plan(report.layout), report.values, report.results, now, writes.changes
            )
            if writes.changes:
                writes.take_changes(host, hostname)
                writes.after[host] = status

    def _plan(self, layout: Layout) -> Plan:
        plans, layout_id = self._plans, layout.id
        plan = plans.get(layout_id)
        if plan is not None:
            plans.move_to_end(layout_id)
            return plan
        assert self._rules is not None
        plan = self._rules.plan(layout)
        self._planned += plan.size
        # One host with ever new layouts must not cost the others their plans.
        while plans and self._planned > _CACHED_PLANS:
            self._planned -= plans.popitem(last=False)[1].size
        plans[layout_id] = plan
        return plan

    def _write(self, tx: Transaction, writes: _Writes) -> None:
        statuses.write_seen(
            tx,
            [
                SeenRow(
                    host,
                    writes.before[host].version,
                    status.epoch,
                    status.seq,
                    status.received_at,
                    status.measured_at,
                    status.silence,
                )
                for host, status in writes.after.items()
            ],
        )
        statuses.write_latest(
            tx, [self._latest_row(tx, host, report, writes) for host, report in writes.latest.items()]
        )
        if writes.checks:
            statuses.write_checks(tx, writes.checks)
        if writes.events:
            statuses.write_events(tx, writes.events)

    def _latest_row(self, tx: Transaction, host: int, report: Report, writes: _Writes) -> LatestRow:
        layout_id = report.layout.id
        number = self._layouts.get(layout_id) or writes.new_layouts.get(layout_id)
        if number is None:
            number = writes.new_layouts[layout_id] = statuses.layout_number(tx, report.layout)
        return statuses.latest_row(host, number, report.values, report.results)

    def _remember(self, writes: _Writes) -> None:
        self._layouts.update(writes.new_layouts)
        while len(self._layouts) > _CACHED_LAYOUTS:
            del self._layouts[next(iter(self._layouts))]
        for host, before in writes.before.items():
            after = writes.after.get(host)
            self._cache[host] = before if after is None else Versioned(before.version + 1, after)
        while len(self._cache) > _CACHED_HOSTS:
            del self._cache[next(iter(self._cache))]


def _is_outdated(item: Submission, caller: Caller | None) -> bool:
    """Whether the Hello of these reports' stream no longer holds."""
    return caller is not None and (
        item.hostname != caller.name or bool(caller.instance and item.instance != caller.instance)
    )
