"""Who is silent, and when many silent hosts are one event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.core.silence import (
    HEARTBEAT_GRACE,
    FleetSilence,
    LastWord,
    Presence,
    listening_since,
    presence,
    sweep,
)
from collector.core.status import Silence

INTERVAL, TTL = 15_000, 45_000
NOW = 1_000_000_000


def host(number, ago, silence=Silence.NONE):
    return LastWord(number, NOW - ago, INTERVAL, TTL, silence)


def look(suspects, expected=1000, listening=0, fleet=FleetSilence(), now=NOW):  # noqa: B008 - immutable
    return sweep(suspects, expected, now, listening, fleet, fleet_share=0.3, fleet_minimum=10)


@pytest.mark.parametrize(
    ("ago", "silence", "listening", "expected"),
    [
        (TTL, Silence.NONE, 0, Presence.FRESH),
        (TTL + 1, Silence.NONE, 0, Presence.FRESH),  # about to be announced
        (TTL + 1, Silence.ALONE, 0, Presence.STALE),
        (TTL + HEARTBEAT_GRACE + 1, Silence.NONE, 0, Presence.STALE),
        (TTL + 1, Silence.NONE, None, Presence.UNKNOWN),
        (TTL + 1, Silence.NONE, NOW - TTL, Presence.UNKNOWN),
        (10 * TTL, Silence.NONE, NOW - TTL - 1, Presence.UNKNOWN),
        (10 * TTL, Silence.NONE, NOW - TTL - HEARTBEAT_GRACE - 1, Presence.STALE),
        (3 * TTL, Silence.ALONE, None, Presence.STALE),
        (3 * TTL, Silence.FLEET, NOW, Presence.STALE),
    ],
)
def test_presence(ago, silence, listening, expected):
    assert presence(NOW - ago, TTL, silence, NOW, listening) is expected


def test_a_host_that_never_reported_is_never_seen():
    assert presence(0, TTL, Silence.NONE, NOW, 0) is Presence.NEVER_SEEN


def test_one_silent_host_is_announced_alone():
    found = look([host(1, TTL + 1), host(2, TTL)])
    assert (found.alone, found.with_fleet) == ((1,), ())


def test_silence_during_our_own_absence_is_nobodys_fault():
    assert look([host(1, 10 * TTL)], listening=NOW - TTL).alone == ()
    assert look([host(1, 10 * TTL)], listening=NOW - TTL - 1).alone == (1,)


def test_a_cut_network_is_one_event_at_the_first_look():
    """When the first host is overdue, the rest of the fleet has missed a report already."""
    suspects = [host(number, 31_000 + number * 15) for number in range(1000)]
    found = look(suspects, expected=1000)
    assert found.alone == ()
    assert len(found.with_fleet) == sum(NOW - suspect.received_at > TTL for suspect in suspects) > 0
    assert found.fleet.since == NOW


def test_those_that_follow_belong_to_the_same_event():
    fleet = FleetSilence(since=NOW - 10_000)
    suspects = [host(n, TTL + 9_000, Silence.FLEET) for n in range(600)] + [
        host(n, TTL + 1) for n in range(600, 700)
    ]
    found = look(suspects, fleet=fleet)
    assert (found.alone, len(found.with_fleet), found.fleet) == ((), 100, fleet)


def test_the_fleet_is_back_when_few_are_silent_and_those_get_a_time_to_live():
    fleet = FleetSilence(since=NOW - 100_000)
    left = [host(n, 100_000, Silence.FLEET) for n in range(5)]
    found = look(left, fleet=fleet)
    assert (found.alone, found.fleet) == ((), FleetSilence(0, NOW))
    assert look(left, fleet=FleetSilence(0, NOW - TTL)).alone == ()
    assert look(left, fleet=FleetSilence(0, NOW - TTL - 1)).alone == (0, 1, 2, 3, 4)


def test_the_fleet_is_back_when_nobody_is_silent_any_more():
    assert look([], fleet=FleetSilence(since=NOW - 1)).fleet == FleetSilence(0, NOW)


def test_a_small_lab_has_no_fleet_events():
    found = look([host(n, TTL + 1) for n in range(9)], expected=9)
    assert (len(found.alone), found.fleet.since) == (9, 0)


@given(st.lists(st.integers(1, 4 * TTL), max_size=50), st.integers(1, 200))
def test_every_overdue_host_is_announced_exactly_once(agos, expected):
    suspects = [host(number, ago) for number, ago in enumerate(agos)]
    found = look(suspects, expected=max(expected, len(agos)))
    overdue = {number for number, ago in enumerate(agos) if ago > TTL}
    assert set(found.alone) | set(found.with_fleet) == overdue
    assert not (found.alone and found.with_fleet)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], None),
        ([(0, 89)], None),
        ([(0, 95)], 0),
        ([(50, 100)], 50),
        ([(0, 40), (50, 100)], 0),
        ([(0, 39), (50, 100)], 50),
        ([(0, 60), (50, 100), (70, 99)], 0),
        ([(90, 100), (20, 98), (0, 10)], 0),
        ([(0, 100), (95, 100)], 0),
    ],
)
def test_listening_since(intervals, expected):
    assert listening_since(intervals, now=100, grace=10) == expected
