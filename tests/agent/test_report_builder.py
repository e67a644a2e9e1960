"""Outcomes become a layout that stays while the machine does."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetpulse.content import (
    MAX_INSTANCE,
    MAX_INSTANCES,
    MAX_MESSAGE,
    ReportBuilder,
    ReportContent,
    instance_name,
)
from fleetpulse.convert import decode_layout, encode_layout, encode_report
from fleetpulse.model import CheckKey, CheckResult, Measurement, Report, State
from fleetpulse.outcome import CheckOutcome, Failure, Reading, Verdict

A = Measurement("test.a", "1")
B = Measurement("test.b", "By")


def build(builder: ReportBuilder, **checks: dict[str, Reading | Failure] | Failure) -> ReportContent:
    return builder.build(CheckOutcome(name, readings) for name, readings in checks.items())


def series(content: ReportContent) -> dict[tuple[CheckKey, Measurement], float]:
    return dict(zip(content.layout.series, content.values, strict=True))


def results(content: ReportContent) -> dict[CheckKey, tuple[State, str]]:
    return {content.layout.checks[r.check].key: (r.state, r.message) for r in content.results}


def test_values_follow_the_layout():
    content = build(ReportBuilder(), z={"": {B: 2.0, A: 1.0}}, f={"/home": {A: 4.0}, "/": {A: 3.0}})
    assert content.layout.series == (
        (CheckKey("f", "/"), A),
        (CheckKey("f", "/home"), A),
        (CheckKey("z"), A),
        (CheckKey("z"), B),
    )
    assert content.values == (3.0, 4.0, 1.0, 2.0)
    assert content.results == ()


def test_the_layout_object_stays_while_its_content_does():
    builder = ReportBuilder()
    first = build(builder, a={"": {A: 1.0}}, f={"/": {A: 1.0}})
    assert build(builder, f={"/": {A: 5.0}}, a={"": {A: 2.0}}).layout is first.layout
    assert build(builder, f=Failure("no"), a={"": Failure("no")}).layout is first.layout


def test_a_failed_check_keeps_its_instances_without_values():
    builder = ReportBuilder()
    build(builder, f={"/": {A: 1.0, B: 2.0}, "/home": {A: 1.0}}, other={"": {A: 1.0}})
    for _ in range(2):
        content = build(builder, f=Failure("timed out after 5 s"), other={"": {A: 7.0}})
        assert len(content.values) == 4
        assert all(math.isnan(v) for (key, _), v in series(content).items() if key.name == "f")
        assert series(content)[CheckKey("other"), A] == 7.0
        unknown = (State.UNKNOWN, "timed out after 5 s")
        assert results(content) == {CheckKey("f", "/"): unknown, CheckKey("f", "/home"): unknown}


def test_what_fails_in_the_first_round_after_a_restart_is_not_taken_for_gone():
    before = build(ReportBuilder(), f={"/": {A: 1.0, B: 2.0}, "/home": {A: 1.0}}, other={"": {A: 1.0}})
    builder = ReportBuilder(before.layout)
    content = build(builder, f=Failure("timed out after 5 s"), other={"": {A: 7.0}})
    assert content.layout is before.layout
    unknown = (State.UNKNOWN, "timed out after 5 s")
    assert results(content) == {CheckKey("f", "/"): unknown, CheckKey("f", "/home"): unknown}
    # Only what the check itself no longer finds, or what is no longer configured, is dropped.
    content = build(builder, f={"/": {A: 1.0, B: 2.0}})
    assert [check.key for check in content.layout.checks] == [CheckKey("f", "/")]


def test_a_failed_instance_keeps_its_series():
    builder = ReportBuilder()
    build(builder, f={"/": {A: 1.0}, "/nfs": {A: 1.0}})
    content = build(builder, f={"/": {A: 2.0}, "/nfs": Failure("still hanging")})
    assert series(content)[CheckKey("f", "/"), A] == 2.0
    assert math.isnan(series(content)[CheckKey("f", "/nfs"), A])
    assert results(content) == {CheckKey("f", "/nfs"): (State.UNKNOWN, "still hanging")}


def test_a_check_that_never_worked_has_an_entry_without_series():
    builder = ReportBuilder()
    content = build(builder, f=Failure("Permission denied"))
    assert content.values == ()
    assert results(content) == {CheckKey("f", ""): (State.UNKNOWN, "Permission denied")}
    assert [c.key for c in build(builder, f={"/": {A: 1.0}}).layout.checks] == [CheckKey("f", "/")]


def test_an_instance_that_never_worked_has_an_entry_without_series():
    content = build(ReportBuilder(), f={"/": {A: 1.0}, "/nfs": Failure("timed out")})
    assert [c.key.instance for c in content.layout.checks] == ["/", "/nfs"]
    assert content.values == (1.0,)
    assert content.results == (CheckResult(1, State.UNKNOWN, "timed out"),)


def test_only_what_its_check_no_longer_finds_is_dropped():
    builder = ReportBuilder()
    build(builder, f={"/": {A: 1.0}, "/usb": {A: 1.0}}, t={"cpu": {A: 40.0}})
    build(builder, f=Failure("failed"), t={"cpu": {A: 40.0}})
    content = build(builder, f={"/": {A: 1.0}}, t={})
    assert [c.key for c in content.layout.checks] == [CheckKey("f", "/")]
    assert [c.key for c in build(builder, f=Failure("failed"), t={}).layout.checks] == [CheckKey("f", "/")]


def test_a_verdict_is_the_checks_own_word():
    content = build(ReportBuilder(), p={"": Verdict(State.CRITICAL, "disk on fire", {A: 1.0})})
    assert content.values == (1.0,)
    assert results(content) == {CheckKey("p"): (State.CRITICAL, "disk on fire")}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_missing(value):
    assert math.isnan(build(ReportBuilder(), c={"": {A: value}}).values[0])


def test_messages_are_cut_and_otherwise_kept():
    content = build(ReportBuilder(), a=Failure("x\x00\x1b[31m\n" + "é" * 2000), b=Failure("bad \udcff"))
    message = results(content)[CheckKey("a")][1]
    assert len(message) == MAX_MESSAGE
    assert message.startswith("x\x00\x1b[31m\né")
    assert results(content)[CheckKey("b")][1] == "bad \\udcff"


def test_names_that_cannot_be_sent():
    long = "/" + "x" * 400
    names = ["/mnt/\udcff", long + "1", long + "2", "/ok/é"]
    content = build(ReportBuilder(), f={name: {A: float(i)} for i, name in enumerate(names)})
    assert len(content.layout.checks) == 4
    assert all(len(c.key.instance) <= MAX_INSTANCE for c in content.layout.checks)
    assert series(content)[CheckKey("f", "/mnt/\\udcff"), A] == 0.0
    assert series(content)[CheckKey("f", "/ok/é"), A] == 3.0
    assert decode_layout(encode_layout(content.layout).layout) == content.layout


def test_a_long_name_keeps_its_series_when_it_fails():
    builder = ReportBuilder()
    name = "/" + "x" * 400
    build(builder, f={name: {A: 1.0}})
    content = build(builder, f={name: Failure("hung")})
    assert content.layout.series == ((CheckKey("f", instance_name(name)), A),)


def test_a_check_gone_wild_is_bounded_and_says_so():
    builder = ReportBuilder()
    many: dict[str, Reading | Failure] = {f"/{n:05}": {A: 1.0} for n in range(MAX_INSTANCES + 50)}
    content = build(builder, f=many, c={"": {A: 1.0}})
    assert len(content.values) == MAX_INSTANCES + 1
    message = f"{MAX_INSTANCES + 50} instances, of which only the first {MAX_INSTANCES} are reported"
    assert results(content) == {CheckKey("f"): (State.UNKNOWN, message)}


readings = st.dictionaries(
    st.sampled_from([A, B, Measurement("test.c", "s")]), st.floats(allow_nan=True), min_size=1
) | st.text(max_size=5).map(Failure)
rounds = st.dictionaries(
    st.sampled_from(["cpu", "disk", "filesystem"]),
    st.dictionaries(st.text(max_size=4), readings, max_size=4) | st.just(Failure("whole")),
    min_size=1,
)


@given(st.lists(rounds, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_whatever_happens_the_report_is_sound(history: list, shuffle: random.Random):
    """Equal histories in any order of checks have equal layouts, and all of them can be sent."""
    one, other = ReportBuilder(), ReportBuilder()
    for seq, outcome in enumerate(history, 1):
        content = build(one, **outcome)
        shuffled = list(outcome.items())
        shuffle.shuffle(shuffled)
        assert build(other, **dict(shuffled)).layout.id == content.layout.id
        assert decode_layout(encode_layout(content.layout).layout) == content.layout
        assert len(content.values) == content.layout.series_count
        assert all(math.isnan(v) or math.isfinite(v) for v in content.values)
        assert encode_report(Report(seq, 0, content.layout, content.values, content.results))
        for name, found in outcome.items():
            if not isinstance(found, Failure):
                keys = {c.key.instance for c in content.layout.checks if c.key.name == name}
                assert keys == {instance_name(instance) for instance in found}
