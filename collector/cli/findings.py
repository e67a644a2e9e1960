"""What `collector-cli doctor` concludes from what it measured. Pure; times in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.cli.output import Cell, Line, Page, Table, line, state_cell, summary
from collector.cli.status import is_alive
from collector.core.render import count, duration, quantity
from collector.core.standing import worst
from collector.store.collectors import CollectorRow, Listening
from fleetpulse.model import State

_SLOW = 1_000
_DAY = 86_400_000
_CA_NOTICE = 30 * _DAY  # as long as it may take until the last host has a certificate of the next CA

_REFUSED = {
    "unauthenticated": "connections without an accepted certificate",
    "unknown_certificate": "streams with one that is not known here",
    "revoked": "with a revoked one",
    "wrong_host": "with one of another host",
    "conflict": "of machines whose identity another one has",
    "enrolment_refused": "attempts to enrol",
    "enrolment_limited": "attempts to enrol that came too fast",
}
"""What a collector counts of those that it does not let in; docs/configuration.md explains each."""

_CLOCK_DIFFERENCE = 2_000
_MIB = 1 << 20


class Finding(NamedTuple):
    """One thing that was looked at; `advice` says what to do about it."""

    name: str
    state: State
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at."""

    findings: tuple[Finding, ...]

    @property
    def state(self) -> State:
        """The worst of all."""
        return worst(finding.state for finding in self.findings)

    @property
    def summary(self) -> str:
        """What is the case, in one line."""
        wrong = [finding.name for finding in self.findings if finding.state is not State.OK]
        return (
            f"look at {', '.join(wrong)}" if wrong else f"{len(self.findings)} things are as they should be"
        )

    def page(self, rows: int | None) -> Page:
        """A line for each."""
        table = Table(
            ("", "", ""),
            [
                (
                    state_cell(finding.state),
                    Cell(finding.name),
                    Cell(f"{finding.text}; {finding.advice}" if finding.advice else finding.text),
                )
                for finding in self.findings[:rows]
            ],
        )
        page: list[Line | Table] = [summary(self.state, self.summary), table]
        return page if table.rows else [line()]

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "state": self.state.name,
            "summary": self.summary,
            "findings": [{**finding._asdict(), "state": finding.state.name} for finding in self.findings],
        }


def judge_database(elapsed: float) -> Finding:
    """A connection and a first answer took this long."""
    text = f"answers in {elapsed:.0f} ms"
    if elapsed > _SLOW:
        return Finding("database", State.WARNING, text, "look at the server's load and the network between")
    return Finding("database", State.OK, text)


def judge_writing(elapsed: float) -> Finding:
    """A small write was committed in this time."""
    text = f"a small one takes {elapsed:.0f} ms"
    if elapsed > _SLOW:
        return Finding("writes", State.WARNING, text, "look at the server's disk and load")
    return Finding("writes", State.OK, text)


def judge_refusal(listen: str, problem: str) -> Finding:
    """A collector that says itself that it does not serve, and why: empty when it is stopping."""
    if problem:
        return Finding("port", State.CRITICAL, f"{listen} answers, but does not serve: {problem}")
    text = f"{listen} answers, but does not serve"
    return Finding("port", State.CRITICAL, text, "it is stopping; look at its log")


def judge_refused(counts: Mapping[str, int]) -> Finding:
    """Who tried to get in and did not. It is no fault of the house that somebody knocks."""
    told = [f"{counts[kind]} {text}" for kind, text in _REFUSED.items() if counts.get(kind)]
    return Finding("refused", State.OK, f"since it started: {'; '.join(told) or 'nobody'}")


def judge_ca(name: str, not_after: int, now: int) -> Finding:
    """Whether the CA that signs lives long enough."""
    text = f"{name} signs for {duration(not_after - now)} more"
    if not_after - now < _CA_NOTICE:
        return Finding("ca", State.WARNING, text, "run: collector-cli ca rotate")
    return Finding("ca", State.OK, text)


def judge_certificate(not_before: int, not_after: int, now: int, *, is_own: bool) -> Finding:
    """Whether the collector's certificate is renewed in time: ours at two thirds of its life, by itself."""
    left = not_after - now
    text = f"valid for {duration(left)} more" if left > 0 else f"expired {duration(-left)} ago"
    advice = (
        "fleet-collector renews it by itself: see its log, and run collector-cli ca init"
        if is_own
        else "put a newer one in its place; no restart is needed"
    )
    if left <= 0:
        return Finding("certificate", State.CRITICAL, text, advice)
    if left < (not_after - not_before) * 0.3:
        return Finding("certificate", State.WARNING, text, advice)
    return Finding("certificate", State.OK, text)


def judge_pool(
    config_name: str, pool_size: int, reserve: int, budget: int | None, rows: Sequence[CollectorRow], now: int
) -> Finding:
    """Whether the pools of all collectors fit into what the server allows."""
    if budget is None:
        return Finding("pool", State.OK, f"{pool_size} connections to a file; there is no server's limit")
    others = [row for row in rows if row.name != config_name and is_alive(row, now)]
    taken = sum(row.pool_size for row in others)
    text = (
        f"{pool_size} here and {taken} of {count(len(others), 'other live collector')}, "
        f"of max_connections {budget} less a reserve of {reserve}"
    )
    if pool_size + taken > budget - reserve:
        return Finding("pool", State.CRITICAL, text, "lower pool_size or raise max_connections")
    return Finding("pool", State.OK, text)


def judge_collectors(rows: Sequence[CollectorRow], listening: Listening) -> Finding:
    """Whether anybody listens."""
    now = listening.now
    alive = [row for row in rows if is_alive(row, now)]
    lost = [row for row in rows if not row.stopped_at and not is_alive(row, now)]
    start = "run: systemctl start fleet-collector (or: fleet-collector)"
    if not alive:
        if not rows:
            return Finding("collectors", State.CRITICAL, "none has ever listened on this database", start)
        last = max(rows, key=lambda row: row.heartbeat_at)
        text = f"none is listening; {last.name} was heard last, {duration(now - last.heartbeat_at)} ago"
        return Finding("collectors", State.CRITICAL, text, start)
    text = ", ".join(
        f"{row.name} listening for {duration(now - row.listening_since)}, heartbeat "
        f"{duration(now - row.heartbeat_at)} ago"
        for row in alive
    )
    if lost:
        names = ", ".join(f"{row.name} for {duration(now - row.heartbeat_at)}" for row in lost)
        return Finding("collectors", State.WARNING, f"{text}; not heard: {names}", "look at its log")
    return Finding("collectors", State.OK, text)


def judge_clock(name: str, difference: int, against: str) -> Finding:
    """How far one clock is ahead of another."""
    text = f"{difference / 1000:+.3f} s against {against}"
    if abs(difference) > _CLOCK_DIFFERENCE:
        return Finding(
            name, State.WARNING, text, "silence is judged right, but times look wrong: check NTP on both"
        )
    return Finding(name, State.OK, text)


def judge_disk(folder: str, free: int, total: int) -> Finding:
    """Whether an embedded database can grow. Sizes in bytes."""
    text = f"{quantity(free, 'By')} of {quantity(total, 'By')} free in {folder}"
    advice = "free some space: a full disk stops the collector's writes"
    if free < 100 * _MIB:
        return Finding("disk", State.CRITICAL, text, advice)
    if free < 1024 * _MIB:
        return Finding("disk", State.WARNING, text, advice)
    return Finding("disk", State.OK, text)


def judge_schema(stored: int, known: int, problem: str) -> Finding:
    """Whether the schema is the one that this program knows; `problem` says why not."""
    if problem:
        return Finding("schema", State.CRITICAL, problem)
    return Finding("schema", State.OK, f"version {stored}, as needed" if stored == known else str(stored))
