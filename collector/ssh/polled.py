"""A host without an agent: what its poller remembers, and how what it says enters by the door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from collector.core.diagnosis import Diagnosis
from collector.core.ssh_settings import POLLED
from collector.core.status import HostRecord
from collector.ingest.door import Door
from collector.ingest.items import HelloNeeded, Registered
from collector.ssh.failure import ProbeFailure
from collector.ssh.measure import HostMeasurer, Measured
from collector.ssh.target import Target
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Facts, Layout, Report, State

_EPOCH = 1
"""Polled hosts have no memory of their own to lose: their numbers go on where the database is."""

_NOT_ASKED = Layout((CheckLayout(CheckKey("ssh"), ()),))
_TRIES = 3  # Hellos for one report: somebody renamed the host meanwhile, or another collector had it


class PolledHost:
    """One of them. `heard_at` is when it was heard last, in milliseconds, as the database has it (0: never)."""

    def __init__(self, target: Target, heard_at: int, collector: str, last_layout: Layout | None):
        self.target = target
        self.heard_at = heard_at
        self.is_suspect = False
        """It failed when it was asked last."""
        self.measurer = HostMeasurer(last_layout)
        self._collector = collector
        self._record: HostRecord | None = None
        self._host = target.host
        self._name = target.name
        self._seq = 0
        self._facts: Facts | None = None
        self._told: Diagnosis | None = None

    @property
    def report_interval(self) -> int:
        """Milliseconds between two reports."""
        return round(self.target.interval * 1000)

    async def report(self, door: Door, measured: Measured, now: Callable[[], int]) -> None:
        """Have a report committed. Raises StoreError, HelloRefused if the host is not to be polled any more."""
        for attempt in range(_TRIES):
            received_at = now()
            record = self._new_record(measured)
            if record != self._record:
                await self._register(door, record, received_at)
            # None at all means that the output was cut off, not that the machine has lost them.
            facts = measured.facts if measured.facts and measured.facts != self._facts else None
            content = measured.content
            report = Report(
                self._seq + 1,
                measured.measured_at or received_at,
                content.layout,
                content.values,
                content.results,
            )
            try:
                self._seq = await door.submit(
                    self._host, self._named(record), _EPOCH, (report,), received_at, facts=facts
                )
            except HelloNeeded:
                self._record = None
                if attempt == _TRIES - 1:
                    raise
            else:
                self._facts = measured.facts
                self.heard_at, self._told, self.is_suspect = received_at, None, False
                return

    async def fail(self, door: Door, failure: ProbeFailure, now: Callable[[], int]) -> bool:
        """Have it stored that the host could not be asked, if that is news. Raises StoreError.

        False: it does not count, because the host has been heard after `heard_at`, or removed.
        """
        self.is_suspect = True
        if failure.diagnosis == self._told:
            return True
        found_at = now()
        message = failure.diagnosis.line
        report = Report(0, found_at, _NOT_ASKED, (), (CheckResult(0, State.UNKNOWN, message),))
        target = self.target
        counts = await door.tell(target.host, target.host_id, target.name, report, self.heard_at, found_at)
        if counts:
            self._told = failure.diagnosis
        return counts

    async def _register(self, door: Door, record: HostRecord, received_at: int) -> None:
        answer = await door.register(record, _EPOCH, received_at, is_polled=True)
        assert isinstance(answer, Registered)  # nobody contests what the collector asks itself
        self._record, self._host, self._seq = record, answer.host, answer.committed_seq
        self._name = answer.name
        self._facts = None

    def _named(self, record: HostRecord) -> HostRecord:
        """As the record is called, which an admin may have changed a moment ago."""
        return record if record.hostname == self._name else replace(record, hostname=self._name)

    def _new_record(self, measured: Measured) -> HostRecord:
        target = self.target
        return HostRecord(
            target.host_id,
            target.name,
            measured.machine_id,
            measured.boot_id,
            POLLED,
            target.address,
            round(target.interval * 1000),
            round(target.ttl * 1000),
            collector=self._collector,
        )
