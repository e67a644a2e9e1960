"""Whatever comes over the wire, decoding it ends quickly and in nothing but a WireError."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import subprocess
import sys
import time
import uuid
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import CheckKey, CheckLayout, Hello, HostId, Layout, Measurement
from fleetpulse.v1 import ingest_pb2 as pb
from tests.conftest import require
from tests.processes import ROOT, Site, clean_environ, wait_until

METHOD = "/fleetpulse.v1.IngestService/Stream"
LAYOUT = Layout((CheckLayout(CheckKey("c"), (Measurement("a", "1"), Measurement("b", "By"))),))
LAYOUTS = {bytes(LAYOUT.id): LAYOUT}
HELLO = Hello(HostId(str(uuid.UUID(int=1))), "fuzz", "m", "b", 1, "1", 1000, 60_000, ("g",))

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
UNSIGNED = NUMBERS.filter(lambda number: number >= 0)
SIGNED = NUMBERS.filter(lambda number: number < 2**63)
TEXT = st.text(max_size=20) | st.sampled_from(["", "x" * 255, "x" * 256, "\0", "\u202e", "c"])
UTF8 = TEXT.filter(lambda text: text.isprintable() or text == "\0")


@st.composite
def requests(draw: st.DrawFn) -> pb.StreamRequest:
    """Messages of the right form with any content."""
    kind = draw(st.sampled_from(["hello", "layout", "facts", "reports", "renewal", "none"]))
    message = pb.StreamRequest()
    if kind == "hello":
        hello = convert.encode_hello(HELLO).hello
        for name in draw(
            st.sets(
                st.sampled_from(["hostname", "machine_id", "boot_id", "host_id", "instance", "hardware_id"])
            )
        ):
            setattr(hello, name, draw(UTF8))
        for name in draw(st.sets(st.sampled_from(["epoch", "interval_ms", "ttl_ms"]))):
            setattr(hello, name, draw(UNSIGNED))
        message.hello.CopyFrom(hello)
    elif kind == "layout":
        message.layout.CopyFrom(convert.encode_layout(LAYOUT).layout)
        if draw(st.booleans()):
            message.layout.checks.add(name=draw(UTF8), instance=draw(UTF8)).measurements.add(name=draw(UTF8))
    elif kind == "facts":
        message.facts.facts.update(draw(st.dictionaries(UTF8, UTF8, max_size=5)))
    elif kind == "renewal":
        message.certificate_request.csr = draw(st.binary(max_size=8))
    elif kind == "reports":
        message.reports.SetInParent()
        for seq in draw(st.lists(UNSIGNED, max_size=4)):
            report = message.reports.reports.add(seq=seq, layout_id=draw(st.sampled_from([LAYOUT.id, b"x"])))
            report.values.extend(draw(st.lists(st.floats(), min_size=2, max_size=2) | st.lists(st.floats())))
            report.measured_at_ms, report.dropped = draw(SIGNED), draw(UNSIGNED)
            for check in draw(st.lists(st.integers(0, 2**32 - 1) | st.just(0), max_size=2)):
                report.results.add(check=check, message=draw(UTF8))
    return message


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The bytes of a message, some of which were changed, left out or doubled."""
    data = bytearray(draw(requests()).SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(st.binary(max_size=8) | st.just(bytes(data[start:end]) * 2))
    return bytes(data)


def decode_all(data: bytes) -> None:
    """Every way of decoding these bytes, whatever they claim to be."""
    for decode in (convert.decode_request, convert.layout_from_wire_bytes, convert.announce_layout):
        with contextlib.suppress(WireError):
            decode(data)
    for kind, decode_kind in (
        (pb.Hello, convert.decode_hello),
        (pb.Layout, convert.decode_layout),
        (pb.Facts, convert.decode_facts),
        (pb.CertificateRequest, convert.decode_certificate_request),
        (pb.ReportBatch, lambda message: convert.decode_batch(message, LAYOUTS, 200)),
        (pb.StreamResponse, convert.decode_response),
    ):
        for part in parts(kind, data):
            with contextlib.suppress(WireError):
                decode_kind(part)


def parts(kind: Any, data: bytes) -> list[Any]:
    """These bytes as a message of `kind`, and what a request of these bytes holds of it."""
    found = []
    for parse in (kind.FromString, pb.StreamRequest.FromString):
        try:
            message = parse(data)
        except Exception:  # noqa: BLE001 - no message; `decode_request` sees the same bytes
            continue
        if isinstance(message, pb.StreamRequest):
            held = message.WhichOneof("message")
            message = getattr(message, held) if held else None
        if isinstance(message, kind):
            found.append(message)
    return found


@given(st.binary(max_size=400) | mutated())
@settings(max_examples=500)
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    began = time.process_time()
    decode_all(data)
    assert time.process_time() - began < 1


LARGEST = {
    "checks": b"\x12\x00" * 500_000,
    "measurements": pb.Layout(
        checks=[pb.CheckLayout(name="c", measurements=[pb.Measurement()] * 349_000)]
    ).SerializeToString(),
    "facts": b"\x0a\x00" * 500_000,
    "reports": pb.ReportBatch(reports=[pb.Report(seq=1, layout_id=LAYOUT.id)] * 43_000).SerializeToString(),
    "nesting": b"\x0b" * 1_000_000,
    "results": pb.ReportBatch(
        reports=[pb.Report(seq=1, layout_id=LAYOUT.id, values=[1, 2], results=[pb.CheckResult()] * 500_000)]
    ).SerializeToString(),
}


@pytest.mark.parametrize("kind", LARGEST)
def test_the_largest_message_of_the_cheapest_parts_costs_little(kind: str) -> None:
    """A megabyte of empty parts, which are the most that a message can have."""
    began = time.process_time()
    decode_all(LARGEST[kind])
    assert time.process_time() - began < 3


@given(requests())
def test_what_is_understood_is_understood_the_same_again(message: pb.StreamRequest) -> None:
    data = message.SerializeToString()
    assert convert.decode_request(data) == message


def test_a_server_fed_with_anything_goes_on_serving(sqlite_site: Site) -> None:
    """Generated conversations on one side, a good agent on the other."""
    site = sqlite_site
    collector = site.collector(limits_hellos_per_minute="1000000", limits_reports_per_second="1000000")
    site.agent("good", interval="200ms")
    ended: set[grpc.StatusCode] = set()

    @settings(max_examples=40)
    @given(
        st.booleans(), st.lists(mutated() | requests().map(pb.StreamRequest.SerializeToString), max_size=6)
    )
    def feed(greet: bool, messages: list[bytes]) -> None:
        if greet:
            opening = (convert.encode_hello(HELLO), convert.encode_layout(LAYOUT))
            messages = [message.SerializeToString() for message in opening] + messages
        ended.add(asyncio.run(_converse(site.address, messages)))

    feed()
    # A message that is refused, one that is cut off, and nothing that we did not foresee.
    assert grpc.StatusCode.INVALID_ARGUMENT in ended
    assert not ended & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    before = _last_report(site)
    wait_until(lambda: _last_report(site) > before, what="a report of the good agent")
    assert collector.stop() == 0
    assert "Traceback" not in collector.log
    assert "defect" not in collector.log


async def _converse(address: str, messages: list[bytes]) -> grpc.StatusCode:
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        await call.wait_for_connection()
        for message in messages:
            try:
                await call._cython_call.send_serialized_message(message)
            except (asyncio.InvalidStateError, grpc.aio.BaseError):
                break
        await call.done_writing()
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
        code: grpc.StatusCode = await call.code()
        return code


def _last_report(site: Site) -> str:
    return str(site.json("show", "good")["last_report_at"])


def test_ten_seconds_of_fuzzing_find_nothing(tmp_path) -> None:
    if importlib.util.find_spec("atheris") is None:
        require("atheris is not installed; it exists for Python 3.11 to 3.13 on x86-64 Linux")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.wire.fuzz_reports",
            "-max_total_time=10",
            "-timeout=5",
            "-rss_limit_mb=2048",
        ],
        cwd=ROOT,
        env=clean_environ({"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done" in done.stderr
