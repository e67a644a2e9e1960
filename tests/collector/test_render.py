from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.cli import times
from collector.cli.output import Cell, Table, line, plain, state_cell, summary, to_json
from collector.core.render import count, duration, escape, listed, quantity
from collector.core.silence import Presence
from collector.core.standing import host_state, silence_state, worst
from fleetpulse.model import State

HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\x07\r\n\t\b\x7f\x9b\u202e\u2028\u200b\ud800[]\\")),
    max_size=40,
)


@given(HOSTILE)
def test_nothing_from_a_host_can_steer_a_terminal(text: str) -> None:
    assert escape(text).isprintable()
    page = plain([line(text, Cell(text, "ok")), Table((text and "A", "B"), [(Cell(text), Cell(text))])])
    assert all(shown.isprintable() for shown in page.split("\n"))
    assert page.count("\n") == 3
    page.encode()  # no lone surrogates


@given(HOSTILE)
def test_json_is_ascii_and_says_the_same(text: str) -> None:
    shown = to_json({"text": text, text: 1})
    assert shown.isascii()
    assert shown.isprintable()
    assert json.loads(shown)["text"] == text or text == "text"


@given(st.text(st.characters(categories=("L", "N", "P")), max_size=40))
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert escape(text) == text


def test_escape_names_what_it_hides() -> None:
    assert escape("\x1b[2Jx\n\u202e") == "\\x1b[2Jx\\n\\u202e"


def test_numbers_that_json_cannot_write_become_null() -> None:
    value = {"a": [math.nan, 1.5, (math.inf,)], "b": -math.inf}
    assert json.loads(to_json(value)) == {"a": [None, 1.5, [None]], "b": None}


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0.0s"),
        (3_240, "3.2s"),
        (59_999, "59s"),
        (60_000, "1m 0s"),
        (192_000, "3m 12s"),
        (3_600_000, "1h 0m"),
        (187_200_000, "2d 4h"),
        (-65_000, "-1m 5s"),
    ],
)
def test_duration(ms: int, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.934, "1", "93.4 %"),
        (1.0, "1", "100 %"),
        (0.0, "1", "0 %"),
        (1536.0, "By", "1.5 KiB"),
        (270.6 * 2**30, "By", "271 GiB"),
        (2.0**20, "By/s", "1 MiB/s"),
        (90061.0, "s", "1d 1h"),
        (41.25, "Cel", "41.2 °C"),
        (12.0, "{process}", "12 process"),
        (0.5, "{packet}/s", "0.5 packet/s"),
        (0.0371, "s/s", "0.0371 s/s"),
        (3.0, "", "3"),
        (math.nan, "By", "-"),
        (math.inf, "1", "inf"),
        (-math.inf, "By", "-inf"),
        (1e300, "By", "8.67e+281 EiB"),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@given(st.floats(), st.one_of(st.sampled_from(["1", "By", "By/s", "s", "Cel"]), st.text(max_size=10)))
def test_every_value_can_be_shown(value: float, unit: str) -> None:
    assert quantity(value, unit)


@given(st.integers(-(2**53), 2**53))
def test_every_time_that_a_host_may_claim_can_be_shown(ms: int) -> None:
    assert times.local(ms)
    shown = times.utc(ms)
    assert shown is None or len(shown) == len("2025-01-02T03:04:05.678Z")


def test_utc() -> None:
    assert times.utc(1_735_787_045_678) == "2025-01-02T03:04:05.678Z"
    assert times.utc(0) is None
    assert times.utc(2**53) is None


def test_columns_are_aligned_and_not_cut() -> None:
    table = Table(("HOST", "STATE"), [(Cell("a"), state_cell(State.OK)), (Cell("x" * 99), state_cell(None))])
    assert plain([summary(State.OK, "fine"), table]) == (
        f"OK: fine\nHOST{' ' * 97}STATE\na{' ' * 100}OK\n{'x' * 99}  -\n"
    )


def test_names_and_numbers_in_a_sentence() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcd"), 2) == "a, b and 2 more"
    assert [count(1, "host"), count(2, "host"), count(0, "entry", "entries")] == [
        "1 host",
        "2 hosts",
        "0 entries",
    ]


def test_unknown_lies_between_warning_and_critical() -> None:
    assert worst([]) is State.OK
    assert worst([State.WARNING, State.UNKNOWN, State.OK]) is State.UNKNOWN
    assert worst([State.UNKNOWN, State.CRITICAL]) is State.CRITICAL


def test_how_a_host_stands() -> None:
    assert host_state(Presence.FRESH, State.WARNING) is State.WARNING
    assert host_state(Presence.STALE, State.OK) is State.CRITICAL
    assert host_state(Presence.UNKNOWN, State.UNKNOWN) is State.UNKNOWN
    assert host_state(Presence.NEVER_SEEN, State.OK) is State.WARNING


@pytest.mark.parametrize(
    ("presences", "listening", "state"),
    [
        ([], True, State.OK),
        ([Presence.FRESH], True, State.OK),
        ([Presence.UNKNOWN, Presence.NEVER_SEEN], True, State.WARNING),
        ([Presence.UNKNOWN, Presence.STALE], True, State.CRITICAL),
        ([], False, State.UNKNOWN),
        ([Presence.UNKNOWN], False, State.UNKNOWN),
        ([Presence.STALE], False, State.CRITICAL),
    ],
)
def test_how_silence_is_judged(presences: list[Presence], listening: bool, state: State) -> None:
    assert silence_state(presences, listening=listening) is state
