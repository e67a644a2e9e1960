"""The hosts of an inventory are waited for; those that do not report are told, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from collector.cli.diagnoses import diagnosis_json, find_current, kinds, without_unasked
from collector.cli.find import NO_SUCH_HOST
from collector.cli.inventory_file import read_inventory
from collector.cli.output import Cell, Line, Page, Table, summary
from collector.cli.progress import ProgressLine
from collector.cli.roll_call import Missing, Roll, Waiting, call_roll, wait_for_all
from collector.cli.session import Session, complain
from collector.cli.ssh_places import with_addresses
from collector.cli.stale import STYLES, nobody_listens
from collector.cli.times import utc
from collector.config import Ssh
from collector.core.render import count, duration, listed
from collector.core.silence import Presence
from collector.store.collectors import Listening, load_listening
from collector.store.diagnoses import StoredDiagnosis
from collector.store.errors import StoreUnavailable
from collector.store.reading import HostLine, load_lines
from collector.store.store import Transaction
from fleetpulse.model import State


class Absent(NamedTuple):
    """A machine that does not report. `host` is None, and `problem` says why, if no one host stands for it."""

    name: str
    host: HostLine | None
    problem: str = ""

    @property
    def hostname(self) -> str:
        """What its record is called; without one, what the inventory calls it."""
        return self.host.hostname if self.host is not None else self.name


@dataclass(frozen=True)
class Awaited:
    """The machines that do not report, of all that were waited for. `counted` are the diagnoses in the summary."""

    listening: Listening
    total: int
    hosts: Sequence[Absent]
    diagnoses: Mapping[int, StoredDiagnosis]
    counted: Mapping[int, StoredDiagnosis]

    @property
    def state(self) -> State:
        """CRITICAL as long as one is missing; UNKNOWN if nobody listens to know better."""
        if self.listening.since is None:
            return State.UNKNOWN
        return State.CRITICAL if self.hosts else State.OK

    def page(self, rows: int | None) -> Page:
        """A summary, then a table."""
        page: list[Line | Table] = [summary(self.state, self.summary)]
        if self.listening.since is None:
            page.append(nobody_listens())
        if self.hosts:
            page.append(
                Table(
                    ("HOST", "PRESENCE", "FOR", "ADDRESS", "WHY"),
                    [self._row(absent) for absent in self.hosts[:rows]],
                )
            )
        return page

    @property
    def summary(self) -> str:
        """What is the case, in one line."""
        of_all = f"of {count(self.total, 'host')}"
        if self.hosts:
            names = listed([absent.hostname for absent in self.hosts])
            verb = "does" if len(self.hosts) == 1 else "do"
            text = f"{len(self.hosts)} {of_all} {verb} not report: {names}{kinds(self._kinds())}"
        elif self.listening.since is None:
            text = f"none {of_all} silent"
        else:
            text = "1 host reports" if self.total == 1 else f"all {self.total} hosts report"
        return text if self.listening.since is not None else f"no collector is listening; {text}"

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "state": self.state.name,
            "summary": self.summary,
            "now": utc(self.listening.now),
            "hosts_total": self.total,
            "hosts": [self._entry(absent) for absent in self.hosts],
        }

    def _entry(self, absent: Absent) -> dict[str, object]:
        host = absent.host
        return {
            "name": absent.name,
            "hostname": absent.hostname,
            "host_id": host.host_id if host else None,
            "presence": host.presence(self.listening).value if host else None,
            "last_report_at": utc(host.received_at) if host else None,
            "address": host.address if host else None,
            "diagnosis": diagnosis_json(self.diagnoses.get(host.host)) if host else None,
            "problem": absent.problem or None,
        }

    def _kinds(self) -> list[str]:
        """Why each is missing, as far as it is known."""
        found = []
        for absent in self.hosts:
            if absent.host is None:
                found.append("no such host" if absent.problem == NO_SUCH_HOST else "ambiguous name")
            elif absent.host.host in self.counted:
                found.append(self.counted[absent.host.host].kind.value)
        return found

    def _row(self, absent: Absent) -> tuple[Cell, ...]:
        host = absent.host
        if host is None:
            return (Cell(absent.name, "strong"), Cell("-"), Cell("-"), Cell("-"), Cell(absent.problem))
        presence = host.presence(self.listening)
        found = self.diagnoses.get(host.host)
        return (
            Cell(host.hostname, "strong"),
            Cell(presence.value, STYLES[presence]),
            Cell(duration(self.listening.now - host.silent_since)),
            Cell(host.address or "-"),
            Cell(found.diagnosis.line if found else "-"),
        )


def examine(tx: Transaction, roll: Roll, site: Ssh) -> Awaited:
    """What is known of those that are missing, and still are."""
    listening = load_listening(tx)
    lines = load_lines(tx, sorted({one.host for one in roll.missing if one.host is not None}))
    placed = with_addresses(tx, lines.values(), site)
    diagnoses = find_current(tx, placed)
    absent = _absent(roll.missing, {host.host: host for host in placed}, listening)
    return Awaited(listening, roll.total, absent, diagnoses, without_unasked(tx, diagnoses, site))


def await_hosts(session: Session, path: Path, timeout: int, *, as_json: bool) -> int:
    """Wait for the hosts of the inventory in the file, at most `timeout` milliseconds; the exit code."""
    names = list(read_inventory(path))
    progress = ProgressLine()

    def complain_once(error: StoreUnavailable) -> None:
        progress.clear()
        complain(f"{error}; trying again")

    with session.store() as store:

        def call() -> Roll:
            with store.transaction(write=False) as tx:
                return call_roll(tx, names)

        waiting = Waiting(
            time.monotonic, time.sleep, lambda roll, left: progress.show(going(roll, left)), complain_once
        )
        try:
            roll = wait_for_all(call, timeout / 1000, waiting)
        finally:
            progress.clear()
        if roll.is_complete:
            found = Awaited(roll.listening, roll.total, (), {}, {})
        else:
            with store.transaction(write=False) as tx:
                found = examine(tx, roll, session.loaded.config.ssh)
    return session.answer(found, as_json=as_json)


def going(roll: Roll, left: float) -> str:
    """How far it is, for who waits, with `left` seconds to go: "18 of 21 report, 12s left"."""
    parts = [f"{roll.total - len(roll.missing)} of {roll.total} report"]
    if roll.listening.since is None:
        parts.append("no collector is listening")
    seconds = math.ceil(left)
    return ", ".join([*parts, f"{duration(seconds * 1000) if seconds >= 10 else f'{seconds}s'} left"])


def _absent(missing: Sequence[Missing], lines: Mapping[int, HostLine], listening: Listening) -> list[Absent]:
    found = []
    for name, number, ambiguous in missing:
        host = lines.get(number) if number is not None else None
        if host is None:
            found.append(Absent(name, None, ambiguous or NO_SUCH_HOST))
        elif host.presence(listening) is not Presence.FRESH:
            found.append(Absent(name, host))
    return found
