"""What presence and check states together say of a host, and of the fleet. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from collector.core.silence import Presence
from fleetpulse.model import State

_OF_PRESENCE = {
    Presence.FRESH: State.OK,
    Presence.STALE: State.CRITICAL,
    Presence.UNKNOWN: State.WARNING,
    Presence.NEVER_SEEN: State.WARNING,
}


def worst(states: Iterable[State]) -> State:
    """The most severe of the states; OK when there is none."""
    return max(states, key=lambda state: state.severity, default=State.OK)


@cache  # asked for every host of a fleet, with one of sixteen answers
def host_state(presence: Presence, checks: State) -> State:
    """How a host stands: the worse of its silence and of the worst state that its checks last had."""
    return worst((_OF_PRESENCE[presence], checks))


def silence_state(presences: Iterable[Presence], *, listening: bool) -> State:
    """How a fleet stands as far as silence goes.

    A stale host is CRITICAL whoever listens; without anybody listening nothing else can be said.
    """
    state = worst(_OF_PRESENCE[presence] for presence in presences)
    return state if listening or state is State.CRITICAL else State.UNKNOWN
