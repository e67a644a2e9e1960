"""collector-cli events: what changed."""

from __future__ import annotations

import time

import click

from collector.cli import options
from collector.cli.find import find_host
from collector.cli.output import Cell, Line, Page, Table, line
from collector.cli.session import CliError, Session, complain, select
from collector.cli.times import local, utc
from collector.core.status import EventKind
from collector.store import reading
from collector.store.collectors import load_listening
from collector.store.errors import StoreUnavailable
from collector.store.event_log import Filter, StoredEvent, event_numbers, load_events, load_numbered
from collector.store.selection import Selection
from collector.store.store import Store, Transaction
from fleetpulse.model import State

_OVERLAP = 60_000
"""Milliseconds into the past in which an event can still appear: it carries the time at which its
transaction began, and a transaction may wait for a lock, or the collectors' clocks differ."""

_STYLES: dict[str, str] = {
    EventKind.SILENT: "critical",
    EventKind.FLEET_SILENT: "critical",
    EventKind.DROPPED: "critical",
    EventKind.REMOVED: "critical",
    EventKind.CONFLICT: "critical",
    EventKind.HOST_KEY_CHANGED: "critical",
    EventKind.DIAGNOSED: "warning",
    EventKind.REVOKED: "warning",
    EventKind.ENROLMENT_REFUSED: "warning",
}


def event_json(event: StoredEvent) -> dict[str, object]:
    """An event as docs/cli.md describes it."""
    return {
        "at": utc(event.at),
        "kind": event.kind,
        "hostname": event.hostname or None,
        "host_id": event.host_id,
        "subject": event.subject,
        "instance": event.instance,
        "old": event.old,
        "new": event.new,
        "message": event.message,
        "measured_at": utc(event.measured_at),
    }


def events_table(events: list[StoredEvent], *, with_host: bool = True) -> Table:
    """Events in columns."""
    headings = ("TIME", "KIND", "HOST", "SUBJECT", "CHANGE")
    rows = [_cells(event) for event in events]
    if with_host:
        return Table(headings, rows)
    return Table(headings[:2] + headings[3:], [row[:2] + row[3:] for row in rows])


def event_line(event: StoredEvent) -> Line:
    """An event as one line, for following."""
    at, kind, host, subject, change = _cells(event)
    kind = Cell(f"{kind.text:<17}", kind.style)
    return line(at, "  ", kind, "  ", host, "  ", subject, "  ", change)


def _cells(event: StoredEvent) -> tuple[Cell, ...]:
    style = _STYLES.get(event.kind, "")
    if event.kind == EventKind.STATE and event.new in State.__members__:
        style = event.new.lower()
    change = f"{event.old} -> {event.new or '-'}" if event.old else event.new
    if event.message:
        change += f": {event.message}" if change else event.message
    return (
        Cell(local(event.at), "dim"),
        Cell(event.kind, style),
        Cell(event.hostname or "(fleet)", "strong"),
        Cell(f"{event.subject} {event.instance}".strip() or "-"),
        Cell(change or "-", style),
    )


class Follower:
    """Finds events that have appeared since the last look, each once.

    Numbers are no guide (see `store.event_log`): every look reads the numbers of the last minute
    and takes those not seen before.
    """

    def __init__(self, tx: Transaction, wanted: Filter):
        self._wanted = wanted
        self._begin = 0
        self._seen = set(self._numbers(tx))

    def skip(self, shown: list[StoredEvent]) -> None:
        """Do not report these: they have been read after the follower was made."""
        self._seen.update(event.number for event in shown)

    def look(self, tx: Transaction) -> list[StoredEvent]:
        """The new events, oldest first."""
        numbers = self._numbers(tx)
        new = [number for number in numbers if number not in self._seen]
        # What left the window is not read again, because the window only moves forwards.
        self._seen = set(numbers)
        return load_numbered(tx, new)

    def _numbers(self, tx: Transaction) -> list[int]:
        self._begin = max(self._begin, load_listening(tx).now - _OVERLAP)
        return event_numbers(tx, self._wanted._replace(since=self._begin))


def _filter(
    tx: Transaction, host: str | None, kinds: tuple[str, ...], since: int | None, hosts: Selection
) -> Filter:
    begin = load_listening(tx).now - since if since is not None else None
    wanted = Filter(kinds=kinds, since=begin, hosts=hosts)
    if host is None:
        return wanted
    if reading.find_prefixed(tx, host):
        return wanted._replace(host=find_host(tx, host).host)
    if not load_events(tx, Filter(hostname=host), 1):
        raise CliError(f"no host {host!r}, and no event of one")
    return wanted._replace(hostname=host)


def _follow(session: Session, store: Store, follower: Follower, interval: float, *, as_json: bool) -> None:
    complained = False
    while True:
        try:
            with store.transaction(write=False) as tx:
                new = follower.look(tx)
            complained = False
        except StoreUnavailable as error:
            if not complained:
                complain(f"{error}; trying again")
            complained, new = True, []
        _print(session, new, as_json=as_json)
        time.sleep(interval)


def _print(session: Session, events: list[StoredEvent], *, as_json: bool) -> None:
    for event in events:
        if as_json:
            session.show_json_line(event_json(event))
        else:
            session.show_line(event_line(event))


@click.command("events")
@click.option("--host", metavar="HOST", help="Only of this host: its name, UUID or the start of one.")
@options.group_option
@options.label_option
@click.option(
    "--since",
    type=options.duration,
    metavar="DURATION",
    help="Only of the last 15s, 5m, 2h, 7d. [default: however old]",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in EventKind]),
    help="Only of this kind; may be repeated.",
)
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="Only the last so many.")
@click.option("--follow", is_flag=True, help="Then print each event as it appears, until Ctrl-C.")
@click.option("--interval", type=options.duration, default="1s", show_default=True, help="How often to look.")
@options.json_option
@click.pass_obj
def command(
    session: Session,
    host: str | None,
    groups: tuple[str, ...],
    labels: options.Labels,
    since: int | None,
    kinds: tuple[str, ...],
    limit: int,
    *,
    follow: bool,
    interval: int,
    as_json: bool,
) -> int:
    """Show what changed, the latest last: states, facts, reboots, silence, who may speak.

    The events of a removed host are found by its whole name. With --group or --label those of hosts that
    are there and belong to it now.

    \b
    Examples:
      collector-cli events --since 1h
      collector-cli events --host web-17 --kind state --kind reboot
      collector-cli events --group lab-3 --label canary
      collector-cli events --follow --json | jq -r .message

    With --follow, JSON is one line per event. Exit codes: 0, also on Ctrl-C; 3 for a wrong command
    line or without a database.
    """
    with session.store() as store:
        with store.transaction(write=False) as tx:
            wanted = _filter(tx, host, kinds, since, select(tx, groups, labels))
            follower = Follower(tx, wanted) if follow else None
            events = load_events(tx, wanted, limit) if limit else []
        if follower is not None:
            follower.skip(events)
            try:
                _print(session, events, as_json=as_json)
                _follow(session, store, follower, options.pause(interval), as_json=as_json)
            except KeyboardInterrupt:
                return State.OK.value
        if as_json:
            session.show_json({"events": [event_json(event) for event in events]})
        else:
            page: Page = [events_table(events)] if events else [line("no events")]
            session.show(page)
    return State.OK.value
