"""A fuzz target for libFuzzer: whatever bytes an agent sends, decoding them raises nothing but WireError.

    python -m tests.wire.fuzz_reports [-max_total_time=60] [CORPUS] [libFuzzer's other options]

What can be decoded must come out the same when it is encoded and decoded again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fleetpulse.convert", "fleetpulse.model"]):
    from fleetpulse import convert
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

_MEASUREMENTS = (Measurement("a", "1"), Measurement("b", "By"))
LAYOUT = Layout((CheckLayout(CheckKey("c"), _MEASUREMENTS), CheckLayout(CheckKey("d", "/x"), ())))
LAYOUTS = {bytes(LAYOUT.id): LAYOUT}


def seeds() -> list[bytes]:
    """A good message of each kind, to begin with."""
    hello = Hello(HostId("00000000-0000-4000-8000-000000000000"), "h", "m", "b", 1, "1", 1000, 3000, ("g",))
    report = Report(1, 2, LAYOUT, (0.5, float("nan")), (CheckResult(1, State.WARNING, "w"),), 3)
    reports = [report, report._replace(seq=2)]
    return [
        message.SerializeToString()
        for message in (
            convert.encode_hello(hello),
            convert.encode_layout(LAYOUT),
            convert.encode_facts({"os.type": "linux"}),
            convert.encode_batch(map(convert.encode_report, reports)),
        )
    ]


def decode(data: bytes) -> None:
    """Decode a message as the collector does, and again what comes out."""
    request = convert.decode_request(data)
    kind = request.WhichOneof("message")
    if kind == "hello":
        hello = convert.decode_hello(request.hello)
        assert convert.decode_hello(convert.encode_hello(hello).hello) == hello
    elif kind == "layout":
        layout = convert.decode_layout(request.layout)
        assert convert.layout_from_wire_bytes(convert.layout_to_wire_bytes(layout)) == layout
        assert Layout.from_json(layout.canonical_json) == layout
    elif kind == "facts":
        facts = convert.decode_facts(request.facts)
        assert convert.decode_facts(convert.encode_facts(facts).facts) == facts
    elif kind == "reports":
        reports = convert.decode_batch(request.reports, LAYOUTS, 200)
        encoded = [convert.encode_report(report) for report in reports]
        again = convert.decode_batch(convert.encode_batch(encoded).reports, LAYOUTS)
        # Byte by byte: a value that is missing (NaN) equals nothing, not even itself.
        assert [convert.encode_report(report) for report in again] == encoded


def try_decode(data: bytes) -> None:
    """What libFuzzer calls; anything but WireError is a find."""
    for how in (decode, convert.layout_from_wire_bytes, _decode_stored):
        try:
            how(data)
        except convert.WireError:
            continue


def _decode_stored(data: bytes) -> None:
    """As the agent does with what its disk gives back."""
    convert.decode_batch(convert.encode_batch([data]).reports, LAYOUTS)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], try_decode)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
