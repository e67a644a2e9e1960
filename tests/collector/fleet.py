"""Hosts in a real database, written through the store's own functions."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence

from collector.core.status import CheckStatus, Event, HostRecord, Silence
from collector.store.collectors import CollectorRow, heartbeat
from collector.store.dialect import SeenRow
from collector.store.hosts import add_hosts, facts_hash, find_hosts, write_facts
from collector.store.statuses import (
    latest_row,
    layout_number,
    write_checks,
    write_events,
    write_latest,
    write_seen,
)
from collector.store.store import Store
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, State

LAYOUT = Layout(
    (
        CheckLayout(CheckKey("cpu"), (Measurement("system.cpu.utilization", "1"),)),
        CheckLayout(
            CheckKey("filesystem", "/home"),
            (
                Measurement("system.filesystem.utilization", "1"),
                Measurement("system.filesystem.limit", "By"),
            ),
        ),
    )
)
MINUTE = 60_000


def record(hostname: str = "web-1", *, host_id: str = "", **changes: object) -> HostRecord:
    """A host's identity."""
    fields: dict[str, object] = {
        "host_id": host_id or str(uuid.uuid4()),
        "hostname": hostname,
        "machine_id": "machine",
        "boot_id": "boot",
        "agent_version": "0.1.0",
        "address": "192.0.2.7",
        "interval": 15_000,
        "ttl": MINUTE,
        "groups": (),
    }
    return HostRecord(**{**fields, **changes})  # type: ignore[arg-type]


class Fleet:
    """Writes hosts as they would be after a while. `ago` is in milliseconds before `now`."""

    def __init__(self, store: Store):
        self.store = store
        self.now = time.time_ns() // 1_000_000
        self._seqs = itertools.count(1)

    def listen(
        self, *, since: int = 3_600_000, heard: int = 0, stopped: int | None = None, name: str = "c1"
    ) -> None:
        """A collector that began `since` ago and was heard `heard` ago."""
        row = CollectorRow(
            name,
            "127.0.0.1:18443",
            "0.1.0",
            8,
            self.now - since,
            self.now - heard,
            None if stopped is None else self.now - stopped,
        )
        with self.store.transaction() as tx:
            heartbeat(tx, row)
            tx.execute("UPDATE collector SET database_at = database_at - %s WHERE name = %s", (heard, name))

    def add(
        self,
        hostname: str,
        *,
        ago: int | None = 0,
        checks: Mapping[CheckKey, CheckStatus] | None = None,
        silence: Silence = Silence.NONE,
        values: Sequence[float] = (0.25, 0.5, 2.0**30),
        results: Sequence[CheckResult] = (),
        facts: Mapping[str, str] | None = None,
        skew: int = 0,
        **identity: object,
    ) -> tuple[int, HostRecord]:
        """A host heard `ago` (None: never); its number and identity."""
        identity_record = record(hostname, **identity)  # type: ignore[arg-type]
        with self.store.transaction() as tx:
            add_hosts(tx, [identity_record], self.now - 7_200_000)
            host = find_hosts(tx, [identity_record.host_id])[identity_record.host_id].host
            if ago is not None:
                received_at = self.now - ago
                write_seen(
                    tx,
                    [SeenRow(host, 0, 7, next(self._seqs), received_at, received_at + skew, silence.value)],
                )
                number = layout_number(tx, LAYOUT)
                write_latest(tx, [latest_row(host, number, values, results)])
                all_ok = {check.key: CheckStatus(State.OK, received_at) for check in LAYOUT.checks}
                write_checks(tx, {host: {**all_ok, **(checks or {})}})
            if facts:
                write_facts(tx, host, facts, facts_hash(facts))
        return host, identity_record

    def event(self, host: int | None, hostname: str, event: Event) -> None:
        with self.store.transaction() as tx:
            write_events(tx, [(host, hostname, event)])


def failing(state: State, message: str, since: int) -> dict[CheckKey, CheckStatus]:
    """A full file system."""
    return {CheckKey("filesystem", "/home"): CheckStatus(state, since, message)}
