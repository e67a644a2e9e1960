"""Who is silent, judged by the collector's clock alone. Pure; times and durations in milliseconds."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from collector.core.status import Silence

ANNOUNCED_WITHIN = 4_000
"""Milliseconds after a host's time-to-live within which a collector announces its silence."""

HEARTBEAT_GRACE = 10_000
"""Milliseconds without a heartbeat after which a collector counts as not listening."""


class Presence(enum.StrEnum):
    """What the lack of reports says of a host."""

    FRESH = "fresh"
    STALE = "stale"
    UNKNOWN = "unknown"
    """Past its time-to-live, but nobody was listening for long enough to say whose fault it is."""
    NEVER_SEEN = "never_seen"


class LastWord(NamedTuple):
    """When a host was heard last (0: never), and what it declared."""

    host: int
    received_at: int
    interval: int
    ttl: int
    silence: Silence


def presence(received_at: int, ttl: int, silence: Silence, now: int, listening_since: int | None) -> Presence:
    """Whether a host is silent.

    `listening_since` is when the collectors last began to listen without a gap until `now`; None
    when nobody listens. Silence that was announced already stays silence whoever listens. Silence
    that is due to be announced this very moment is not told before its event is written, so that
    whoever is called stale has a `silent` event; a collector that does not get to it is not waited for
    longer than one that was heard last may already have been gone by then.
    """
    if not received_at:
        return Presence.NEVER_SEEN
    if silence:
        return Presence.STALE
    if now - received_at <= ttl:
        return Presence.FRESH
    if listening_since is None:
        return Presence.UNKNOWN
    overdue = now - max(received_at, listening_since) - ttl
    if overdue > HEARTBEAT_GRACE:
        return Presence.STALE
    return Presence.FRESH if received_at >= listening_since else Presence.UNKNOWN


class FleetSilence(NamedTuple):
    """Whether the fleet as a whole counts as silent.

    `since` is when that began (0: it does not), `back_at` when it last came back (0: never).
    """

    since: int = 0
    back_at: int = 0


class Sweep(NamedTuple):
    """What a look over the whole fleet found: hosts to be marked, and how the fleet is now."""

    alone: tuple[int, ...]
    """Hosts whose silence gets an event of its own."""
    with_fleet: tuple[int, ...]
    """Hosts whose silence is part of one event about the fleet."""
    fleet: FleetSilence


def sweep(
    suspects: Sequence[LastWord],
    expected: int,
    now: int,
    listening_since: int,
    fleet: FleetSilence,
    *,
    fleet_share: float,
    fleet_minimum: int,
) -> Sweep:
    """Find newly silent hosts, and tell one silent host from a silent fleet.

    `suspects` are the hosts that missed a report or are part of a fleet's silence already, without
    those whose silence has its own event; `expected` counts all hosts without those.

    A fleet goes silent when at least `fleet_minimum` hosts and `fleet_share` of those that should
    speak are overdue or have missed a report. (When the first host's time-to-live runs out, the
    others behind the same cut have missed reports already, so one look is enough.) It is back
    when fewer than that are silent. Who is still silent a time-to-live later is announced alone.
    """
    overdue: list[int] = []
    held: list[int] = []
    left_behind: list[int] = []
    late = 0
    for host in suspects:
        heard = max(host.received_at, listening_since)
        if host.silence is Silence.FLEET:
            held.append(host.host)
            if now - max(heard, fleet.back_at) > host.ttl:
                left_behind.append(host.host)
        elif now - heard > host.ttl:
            overdue.append(host.host)
        elif now - heard > 1.5 * host.interval:
            late += 1
    threshold = max(fleet_minimum, fleet_share * expected)
    if fleet.since:
        if len(held) + len(overdue) + late >= threshold:
            return Sweep((), tuple(overdue), fleet)
        return Sweep((), tuple(overdue), FleetSilence(0, now))
    if overdue and len(overdue) + late >= threshold:
        return Sweep((), tuple(overdue), fleet._replace(since=now))
    return Sweep((*overdue, *left_behind), (), fleet)


def listening_since(intervals: Iterable[tuple[int, int]], now: int, grace: int) -> int | None:
    """When unbroken listening that reaches `now` began, from every collector's (since, until).

    A gap of up to `grace` between two collectors, or before `now`, is none. None: nobody listens.
    """
    since: int | None = None
    until = now
    for began, ended in sorted(intervals, key=lambda interval: interval[1], reverse=True):
        if ended + grace < until:
            break
        since = began if since is None else min(since, began)
        until = since
    return since
