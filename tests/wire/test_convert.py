from __future__ import annotations

import math
import tracemalloc
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetpulse import convert
from fleetpulse.convert import MAX_SEQ, Ack, Goodbye, Throttle, Welcome, WireError
from fleetpulse.model import (
    CheckKey,
    CheckLayout,
    CheckResult,
    Hello,
    HostId,
    Layout,
    Measurement,
    Report,
    State,
)
from fleetpulse.v1 import ingest_pb2 as pb

# Any text that UTF-8 can carry.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAME = TEXT.filter(bool)
SEQ = st.integers(1, MAX_SEQ)

HELLOS = st.builds(
    Hello,
    host_id=st.uuids().map(lambda value: HostId(str(value))),
    hostname=NAME,
    machine_id=TEXT,
    boot_id=TEXT,
    epoch=SEQ,
    agent_version=TEXT,
    interval=st.integers(convert.MIN_INTERVAL, 3_600_000),
    ttl=st.integers(3_600_000, convert.MAX_TTL),
    groups=st.sets(TEXT, max_size=5).map(lambda groups: tuple(sorted(groups))),
)
MEASUREMENTS = st.lists(st.builds(Measurement, TEXT, TEXT), max_size=4).map(tuple)
LAYOUTS = st.lists(
    st.builds(CheckLayout, st.builds(CheckKey, NAME, TEXT), MEASUREMENTS),
    max_size=5,
    unique_by=lambda check: check.key,
).map(lambda checks: Layout(tuple(checks)))


@st.composite
def reports(draw: st.DrawFn) -> Report:
    layout = draw(LAYOUTS)
    count = layout.series_count
    checks = draw(st.sets(st.integers(0, len(layout.checks) - 1))) if layout.checks else set()
    return Report(
        seq=draw(SEQ),
        measured_at=draw(st.integers(1 - convert.CLOCK_RANGE, convert.CLOCK_RANGE - 1)),
        layout=layout,
        values=tuple(draw(st.lists(st.floats(), min_size=count, max_size=count))),
        results=tuple(CheckResult(n, draw(st.sampled_from(State)), draw(TEXT)) for n in checks),
        dropped=draw(st.integers(0, MAX_SEQ)),
    )


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(HELLOS)
def test_hello_round_trip(hello: Hello) -> None:
    assert convert.decode_hello(over_the_wire(convert.encode_hello(hello)).hello) == hello


@given(LAYOUTS)
def test_layout_round_trip(layout: Layout) -> None:
    decoded = convert.decode_layout(over_the_wire(convert.encode_layout(layout)).layout)
    assert decoded == layout
    assert decoded.id == layout.id
    stored = convert.layout_to_wire_bytes(layout)
    assert convert.layout_from_wire_bytes(stored) == layout
    assert convert.announce_layout(stored) == convert.encode_layout(layout)


@given(st.dictionaries(TEXT, TEXT, max_size=6))
def test_facts_round_trip(facts: dict[str, str]) -> None:
    assert convert.decode_facts(over_the_wire(convert.encode_facts(facts)).facts) == facts


@given(st.lists(reports(), min_size=1, max_size=4, unique_by=lambda report: report.seq))
def test_batch_round_trip(batch: list[Report]) -> None:
    batch.sort(key=lambda report: report.seq)
    message = over_the_wire(convert.encode_batch(map(convert.encode_report, batch)))
    assert message.WhichOneof("message") == "reports"
    decoded = convert.decode_batch(message.reports, {r.layout.id: r.layout for r in batch})
    assert len(decoded) == len(batch)
    for was, now in zip(batch, decoded, strict=True):
        assert now._replace(values=()) == was._replace(values=())
        assert isinstance(now.values, array), "objects take up four times as much memory"
        for before, after in zip(was.values, now.values, strict=True):
            assert before == after or (math.isnan(before) and math.isnan(after))


@given(st.integers(0, MAX_SEQ), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_what_the_collector_says_round_trip(seq: int, small: int, big: int) -> None:
    for message, said in (
        (convert.encode_welcome(seq, small, small), Welcome(seq, small, small)),
        (convert.encode_ack(seq), Ack(seq)),
        (convert.encode_throttle(big), Throttle(big)),
        (convert.encode_goodbye(big), Goodbye(big)),
    ):
        assert convert.decode_response(over_the_wire(message)) == said


def test_what_a_newer_collector_says_is_ignored() -> None:
    unknown_field = b"\xfa\x01\x02hi"  # field 31
    assert convert.decode_response(pb.StreamResponse.FromString(unknown_field)) is None
    known = pb.StreamResponse.FromString(convert.encode_ack(5).SerializeToString() + unknown_field)
    assert convert.decode_response(known) == Ack(5)


def test_a_state_of_a_newer_agent_is_unknown() -> None:
    layout = Layout((CheckLayout(CheckKey("a"), ()),))
    message = pb.ReportBatch(
        reports=[pb.Report(seq=1, layout_id=layout.id, results=[pb.CheckResult(check=0, state=9)])]  # type: ignore[arg-type]
    )
    assert convert.decode_batch(message, {layout.id: layout})[0].results[0].state is State.UNKNOWN


@pytest.mark.parametrize(
    "message",
    [
        pb.StreamResponse(ack=pb.Ack(seq=2**63)),
        pb.StreamResponse(welcome=pb.Welcome(committed_seq=2**64 - 1)),
    ],
)
def test_a_number_that_no_agent_gave(message: pb.StreamResponse) -> None:
    with pytest.raises(WireError, match="above 2"):
        convert.decode_response(message)


GOOD_HELLO = {
    "host_id": "6a7e1b0c-6f0d-4f6d-8f2b-0d6d5a9b1c11",
    "hostname": "h",
    "epoch": 1,
    "interval_ms": 1000,
    "ttl_ms": 3000,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host_id": "me"}, "host_id is not a UUID"),
        ({"host_id": "x" * 36}, "host_id is"),
        ({"hostname": ""}, "hostname is empty"),
        ({"hostname": "h" * 256}, "hostname of 256 characters"),
        ({"machine_id": "h" * 256}, "machine_id of 256 characters"),
        ({"epoch": 0}, "epoch 0 is not between"),
        ({"epoch": 2**63}, "is not between"),
        ({"interval_ms": 99}, "must satisfy"),
        ({"interval_ms": 4000}, "must satisfy"),
        ({"ttl_ms": 2**40}, "must satisfy"),
        ({"groups": ["g"] * 65}, "65 groups"),
        ({"groups": ["g" * 256]}, "group of 256 characters"),
    ],
)
def test_a_malformed_hello(change: dict[str, Any], message: str) -> None:
    convert.decode_hello(pb.Hello(**GOOD_HELLO))  # type: ignore[arg-type]
    with pytest.raises(WireError, match=message):
        convert.decode_hello(pb.Hello(**GOOD_HELLO | change))  # type: ignore[arg-type]


LAYOUT = Layout((CheckLayout(CheckKey("a"), (Measurement("m", "1"),)), CheckLayout(CheckKey("b"), ())))


def _twice(message: pb.Layout) -> None:
    message.checks.add().CopyFrom(message.checks[0])


def _unnamed(message: pb.Layout) -> None:
    message.checks[1].name = ""


def _long(message: pb.Layout) -> None:
    message.checks[0].measurements[0].name = "m" * 256


def _too_many_checks(message: pb.Layout) -> None:
    for number in range(convert.MAX_CHECKS):
        message.checks.add(name=str(number))


def _too_many_series(message: pb.Layout) -> None:
    for _ in range(convert.MAX_SERIES):
        message.checks[0].measurements.add(name="m")


def _other_id(message: pb.Layout) -> None:
    message.id = b"0" * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, "names a check twice"),
        (_unnamed, "a check without a name"),
        (_long, "measurement of 256 characters"),
        (_too_many_checks, "5002 checks"),
        (_too_many_series, "more than 20000 series"),
        (_other_id, "not the hash"),
    ],
)
def test_a_malformed_layout(change: Callable[[pb.Layout], None], message: str) -> None:
    layout = convert.encode_layout(LAYOUT).layout
    change(layout)
    with pytest.raises(WireError, match=message):
        convert.decode_layout(layout)


def test_malformed_stored_layouts() -> None:
    for data in (b"\xff\xff", convert.encode_ack(1).SerializeToString(), b""):
        with pytest.raises(WireError):
            convert.layout_from_wire_bytes(data)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({str(n): "" for n in range(1001)}, "1001 facts"),
        ({"n" * 256: ""}, "fact of 256 characters"),
        ({"n": "v" * 4097}, "n of 4097 characters"),
    ],
)
def test_malformed_facts(facts: dict[str, str], message: str) -> None:
    with pytest.raises(WireError, match=message):
        convert.decode_facts(pb.Facts(facts=facts))


GOOD_REPORT = {"seq": 1, "measured_at_ms": 0, "layout_id": LAYOUT.id, "values": [1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq": 0}, "seq 0 is not between"),
        ({"seq": 2**63}, "is not between"),
        ({"layout_id": b""}, "layout not announced: none"),
        ({"layout_id": b"\x01"}, "layout not announced: 01"),
        ({"values": []}, "0 values for a layout of 1"),
        ({"values": [1.0, 2.0]}, "2 values for a layout of 1"),
        ({"measured_at_ms": 2**53}, "no time that a calendar knows"),
        ({"measured_at_ms": -(2**63)}, "no time that a calendar knows"),
        ({"dropped": 2**63}, "reports dropped"),
        ({"results": [pb.CheckResult(check=2)]}, "result of check 2 in a layout of 2"),
        ({"results": [pb.CheckResult(check=1)] * 2}, "two results of b"),
        ({"results": [pb.CheckResult(message="m" * 4097)]}, "message of 4097 characters"),
    ],
)
def test_a_malformed_report(change: dict[str, Any], message: str) -> None:
    layouts = {bytes(LAYOUT.id): LAYOUT}
    convert.decode_batch(pb.ReportBatch(reports=[pb.Report(**GOOD_REPORT)]), layouts)  # type: ignore[arg-type]
    with pytest.raises(WireError, match=message):
        convert.decode_batch(pb.ReportBatch(reports=[pb.Report(**GOOD_REPORT | change)]), layouts)  # type: ignore[arg-type]


@pytest.mark.parametrize("seqs", [(2, 1), (1, 1)])
def test_a_batch_out_of_order(seqs: tuple[int, int]) -> None:
    batch = pb.ReportBatch(reports=[pb.Report(**GOOD_REPORT | {"seq": seq}) for seq in seqs])  # type: ignore[arg-type]
    with pytest.raises(WireError, match="in one batch"):
        convert.decode_batch(batch, {bytes(LAYOUT.id): LAYOUT})


@pytest.mark.parametrize("character", ["m", "\xe9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize(("checks", "series", "length"), [(1, 2_000, 250), (2_000, 0, 250), (2_000, 1, 5)])
def test_a_layout_takes_up_no_more_memory_than_it_says(
    checks: int, series: int, length: int, character: str
) -> None:
    """With all that it makes of its content for good: the collector bounds what it keeps by that."""

    def name(number: int) -> str:
        return f"{number:05}".ljust(length, "n") + character

    layout = Layout(
        tuple(
            CheckLayout(
                CheckKey(name(check), name(check)),
                tuple(Measurement(name(one), name(one)) for one in range(series)),
            )
            for check in range(checks)
        )
    )
    data = convert.layout_to_wire_bytes(layout)
    tracemalloc.start()
    try:
        decoded = convert.layout_from_wire_bytes(data)
        assert len(decoded.series) == decoded.series_count
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= decoded.size * 1.1
    assert decoded.size < 2 * taken
