"""The only place where wire types and domain values meet.

`encode_*` turns a domain value into a message, `decode_*` does the reverse and raises `WireError`
for whatever a well-behaved peer would not send. Unknown fields are ignored, as protobuf does.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fleetpulse.model import (
    CheckKey,
    CheckLayout,
    CheckResult,
    Facts,
    Hello,
    Layout,
    Measurement,
    Report,
    State,
    parse_host_id,
)
from fleetpulse.v1 import ingest_pb2 as pb

# Bounds on what one host may say. Far above what real machines need, low enough that no host can
# fill the collector's memory or a database column.
MAX_NAME = 255  # characters of a hostname, check, instance, measurement, group or fact name
MAX_MESSAGE = 4096  # characters of a check's message or a fact's value
MAX_CHECKS = 5_000  # checks in a layout
MAX_SERIES = 20_000  # series in a layout
MAX_FACTS = 1_000
MAX_GROUPS = 64
MIN_INTERVAL = 100  # milliseconds
MAX_TTL = 30 * 86_400_000  # milliseconds
MAX_SEQ = 2**63 - 1  # what a signed 64-bit column holds
MAX_CSR = 8 << 10  # bytes of a certificate request; one for a P-256 key has about 400
MAX_TRUST_ID = 32  # bytes
CLOCK_RANGE = 2**53  # milliseconds around 1970 that every JSON reader represents exactly

_STATE_TO_WIRE = {
    State.OK: pb.STATE_OK,
    State.WARNING: pb.STATE_WARNING,
    State.CRITICAL: pb.STATE_CRITICAL,
    State.UNKNOWN: pb.STATE_UNKNOWN,
}
_STATE_FROM_WIRE: dict[int, State] = {wire: state for state, wire in _STATE_TO_WIRE.items()}


class WireError(ValueError):
    """The peer sent something malformed or beyond the bounds; the text says what."""


class Welcome(NamedTuple):
    """Where the agent resumes, and the bounds that the collector sets; 0 reports or bytes: none set."""

    committed_seq: int
    max_batch_reports: int
    max_message_bytes: int


class Ack(NamedTuple):
    """Everything up to `seq` is committed."""

    seq: int


class Throttle(NamedTuple):
    """Send nothing for `retry_after` milliseconds."""

    retry_after: int


class Goodbye(NamedTuple):
    """Close the stream and come back after `reconnect_after` milliseconds."""

    reconnect_after: int


class Certificate(NamedTuple):
    """A new certificate for the host of the stream, as PEM, with what leads to its CA."""

    chain: bytes


class Trust(NamedTuple):
    """The CA certificates to trust from now on, as PEM.

    `renew_within`: milliseconds within which to ask for a new certificate; 0: no need.
    """

    ca_bundle: bytes
    renew_within: int


Response = Welcome | Ack | Throttle | Goodbye | Certificate | Trust
"""What the collector can say."""

StreamRequest = pb.StreamRequest
"""An encoded message to the collector. Opaque everywhere else."""

StreamResponse = pb.StreamResponse
"""An encoded message to the agent. Opaque everywhere else."""


def decode_request(data: bytes) -> pb.StreamRequest:
    """One message of an agent, as it came over the wire.

    Raises WireError for bytes that are none, such as text that is not UTF-8.
    """
    try:
        return pb.StreamRequest.FromString(data)
    except DecodeError as error:
        raise WireError(f"not a message: {error}") from None


def encode_hello(hello: Hello) -> pb.StreamRequest:
    """The message that opens a stream."""
    return pb.StreamRequest(
        hello=pb.Hello(
            host_id=hello.host_id,
            hostname=hello.hostname,
            machine_id=hello.machine_id,
            boot_id=hello.boot_id,
            epoch=hello.epoch,
            agent_version=hello.agent_version,
            interval_ms=hello.interval,
            ttl_ms=hello.ttl,
            groups=hello.groups,
            instance=hello.instance,
            hardware_id=hello.hardware_id,
            trust_id=hello.trust_id,
        )
    )


def decode_hello(message: pb.Hello) -> Hello:
    """Raises WireError for an impossible identity, epoch or interval."""
    try:
        host_id = parse_host_id(message.host_id)
    except ValueError as error:
        raise WireError(f"host_id is {error}") from None
    if not 0 < message.epoch <= MAX_SEQ:
        raise WireError(f"epoch {message.epoch} is not between 1 and 2^63-1")
    if not MIN_INTERVAL <= message.interval_ms <= message.ttl_ms <= MAX_TTL:
        raise WireError(
            f"interval {message.interval_ms} ms and time-to-live {message.ttl_ms} ms must satisfy "
            f"{MIN_INTERVAL} <= interval <= time-to-live <= {MAX_TTL}"
        )
    if len(message.groups) > MAX_GROUPS:
        raise WireError(f"{len(message.groups)} groups, more than {MAX_GROUPS}")
    if not message.hostname:
        raise WireError("hostname is empty")
    if len(message.trust_id) > MAX_TRUST_ID:
        raise WireError(f"trust_id of {len(message.trust_id)} bytes, more than {MAX_TRUST_ID}")
    return Hello(
        host_id=host_id,
        hostname=_name("hostname", message.hostname),
        machine_id=_name("machine_id", message.machine_id),
        boot_id=_name("boot_id", message.boot_id),
        epoch=message.epoch,
        agent_version=_name("agent_version", message.agent_version),
        interval=message.interval_ms,
        ttl=message.ttl_ms,
        groups=tuple(sorted({_name("group", group) for group in message.groups})),
        instance=_name("instance", message.instance),
        hardware_id=_name("hardware_id", message.hardware_id),
        trust_id=message.trust_id,
    )


def encode_certificate_request(csr: bytes) -> pb.StreamRequest:
    """The message that asks for a new certificate; `csr` is PKCS #10 in DER."""
    return pb.StreamRequest(certificate_request=pb.CertificateRequest(csr=csr))


def decode_certificate_request(message: pb.CertificateRequest) -> bytes:
    """PKCS #10 in DER, by its length alone. Raises WireError."""
    if not 0 < len(message.csr) <= MAX_CSR:
        raise WireError(f"certificate request of {len(message.csr)} bytes, expected 1 to {MAX_CSR}")
    return message.csr


def encode_layout(layout: Layout) -> pb.StreamRequest:
    """The message that announces a layout."""
    return pb.StreamRequest(
        layout=pb.Layout(
            id=layout.id,
            checks=[
                pb.CheckLayout(
                    name=check.key.name,
                    instance=check.key.instance,
                    measurements=[pb.Measurement(name=m.name, unit=m.unit) for m in check.measurements],
                )
                for check in layout.checks
            ],
        )
    )


def decode_layout(message: pb.Layout) -> Layout:
    """Raises WireError for a layout that is too large, ambiguous, or not what its id says."""
    if len(message.checks) > MAX_CHECKS:
        raise WireError(f"layout of {len(message.checks)} checks, more than {MAX_CHECKS}")
    if sum(len(check.measurements) for check in message.checks) > MAX_SERIES:
        raise WireError(f"layout of more than {MAX_SERIES} series")
    layout = Layout(
        tuple(
            CheckLayout(
                CheckKey(_name("check", check.name), _name("instance", check.instance)),
                tuple(
                    Measurement(_name("measurement", m.name), _name("unit", m.unit))
                    for m in check.measurements
                ),
            )
            for check in message.checks
        )
    )
    keys = {check.key for check in layout.checks}
    if len(keys) != len(layout.checks):
        raise WireError("layout names a check twice")
    if any(not key.name for key in keys):
        raise WireError("layout has a check without a name")
    if layout.id != message.id:
        raise WireError("layout id is not the hash of its content")
    return layout


def encode_facts(facts: Facts) -> pb.StreamRequest:
    """The message that carries the inventory."""
    return pb.StreamRequest(facts=pb.Facts(facts=facts))


def decode_facts(message: pb.Facts) -> dict[str, str]:
    """Raises WireError for more, or longer, facts than the bounds allow."""
    if len(message.facts) > MAX_FACTS:
        raise WireError(f"{len(message.facts)} facts, more than {MAX_FACTS}")
    return {_name("fact", name): _text(name, value) for name, value in message.facts.items()}


def encode_report(report: Report) -> bytes:
    """The report as it is stored in the spool and placed in a batch."""
    return pb.Report(
        seq=report.seq,
        measured_at_ms=report.measured_at,
        layout_id=report.layout.id,
        values=report.values,
        results=[
            pb.CheckResult(check=r.check, state=_STATE_TO_WIRE[r.state], message=r.message)
            for r in report.results
        ],
        dropped=report.dropped,
    ).SerializeToString()


def encode_batch(reports: Iterable[bytes]) -> pb.StreamRequest:
    """One message of several reports, each as `encode_report` made it.

    Raises WireError for bytes that it cannot have made.
    """
    batch = pb.StreamRequest()
    batch.reports.SetInParent()
    try:
        for report in reports:
            batch.reports.reports.add().MergeFromString(report)
    except DecodeError as error:
        raise WireError(f"not a report: {error}") from None
    return batch


def batch_size(message: pb.ReportBatch, most: int = sys.maxsize) -> int:
    """How many reports there are in a batch, before they cost anything. Raises WireError for none or too many."""
    count = len(message.reports)
    if not 0 < count <= most:
        raise WireError(
            f"{count} reports in one batch, more than {most}" if count else "a batch without reports"
        )
    return count


def decode_batch(
    message: pb.ReportBatch, layouts: Mapping[bytes, Layout], most: int = sys.maxsize
) -> list[Report]:
    """The reports of a batch, `most` at most, judged against the layouts that its stream announced.

    Raises WireError for none or too many, and for a report of an unknown layout, of the wrong length, or
    out of order.
    """
    batch_size(message, most)
    reports = [_decode_report(report, layouts) for report in message.reports]
    for earlier, later in itertools.pairwise(reports):
        if later.seq <= earlier.seq:
            raise WireError(f"seq {later.seq} follows {earlier.seq} in one batch")
    return reports


def _decode_report(message: pb.Report, layouts: Mapping[bytes, Layout]) -> Report:
    layout = layouts.get(message.layout_id)
    if layout is None:
        raise WireError(f"report of a layout not announced: {message.layout_id[:16].hex() or 'none'}")
    values = array("d", message.values[:])  # a slice is copied at once, an iterator value by value
    if len(values) != layout.series_count:
        raise WireError(f"report of {len(values)} values for a layout of {layout.series_count} series")
    seq, measured_at, dropped = message.seq, message.measured_at_ms, message.dropped
    if not 0 < seq <= MAX_SEQ:
        raise WireError(f"seq {seq} is not between 1 and 2^63-1")
    if not -CLOCK_RANGE < measured_at < CLOCK_RANGE:
        raise WireError(f"measured_at {measured_at} ms is no time that a calendar knows")
    if dropped > MAX_SEQ:
        raise WireError(f"{dropped} reports dropped is more than there can have been")
    results = message.results
    if not results:
        return Report(seq, measured_at, layout, values, (), dropped)
    return Report(seq, measured_at, layout, values, _decode_results(results, layout), dropped)


def _decode_results(results: Iterable[pb.CheckResult], layout: Layout) -> tuple[CheckResult, ...]:
    decoded: dict[int, CheckResult] = {}
    for result in results:
        if result.check >= len(layout.checks):
            raise WireError(f"result of check {result.check} in a layout of {len(layout.checks)}")
        if result.check in decoded:
            raise WireError(f"two results of {layout.checks[result.check].key}")
        # A state that a newer agent knows and this collector does not is honestly UNKNOWN.
        state = _STATE_FROM_WIRE.get(result.state, State.UNKNOWN)
        decoded[result.check] = CheckResult(result.check, state, _text("message", result.message))
    return tuple(decoded.values())


def encode_welcome(committed_seq: int, max_batch_reports: int, max_message_bytes: int) -> pb.StreamResponse:
    """Where the agent resumes, and the bounds it has to keep."""
    return pb.StreamResponse(
        welcome=pb.Welcome(
            committed_seq=committed_seq,
            max_batch_reports=max_batch_reports,
            max_message_bytes=max_message_bytes,
        )
    )


def encode_ack(seq: int) -> pb.StreamResponse:
    """Everything up to `seq` is committed."""
    response = pb.StreamResponse()
    response.ack.seq = seq  # a third of the cost of naming it in the constructor
    return response


def encode_throttle(retry_after: int) -> pb.StreamResponse:
    """Ask for a pause of `retry_after` milliseconds."""
    return pb.StreamResponse(throttle=pb.Throttle(retry_after_ms=retry_after))


def encode_goodbye(reconnect_after: int) -> pb.StreamResponse:
    """Ask the agent to close and to come back after `reconnect_after` milliseconds."""
    return pb.StreamResponse(goodbye=pb.Goodbye(reconnect_after_ms=reconnect_after))


def encode_certificate(chain: bytes) -> pb.StreamResponse:
    """The message that carries a new certificate."""
    return pb.StreamResponse(certificate=pb.Certificate(chain=chain))


def encode_trust(ca_bundle: bytes, renew_within: int) -> pb.StreamResponse:
    """The message that says whom to trust; see `Trust`."""
    return pb.StreamResponse(trust=pb.Trust(ca_bundle=ca_bundle, renew_within_ms=renew_within))


def decode_response(message: pb.StreamResponse) -> Response | None:
    """What the collector says; None for a kind of message that only a newer collector knows.

    Raises WireError for a sequence number that no agent can have given.
    """
    match message.WhichOneof("message"):
        case "welcome":
            welcome = message.welcome
            return Welcome(_seq(welcome.committed_seq), welcome.max_batch_reports, welcome.max_message_bytes)
        case "ack":
            return Ack(_seq(message.ack.seq))
        case "throttle":
            return Throttle(message.throttle.retry_after_ms)
        case "goodbye":
            return Goodbye(message.goodbye.reconnect_after_ms)
        case "certificate":
            return Certificate(message.certificate.chain)
        case "trust":
            return Trust(message.trust.ca_bundle, message.trust.renew_within_ms)
        case _:
            return None


def layout_to_wire_bytes(layout: Layout) -> bytes:
    """A layout in the form that the spool keeps."""
    return encode_layout(layout).layout.SerializeToString()


def announce_layout(data: bytes) -> pb.StreamRequest:
    """The message that announces a layout which `layout_to_wire_bytes` made.

    Raises WireError for bytes that it cannot have made.
    """
    return pb.StreamRequest(layout=_parse_layout(data))


def layout_from_wire_bytes(data: bytes) -> Layout:
    """The reverse of `layout_to_wire_bytes`; raises WireError for anything else."""
    return decode_layout(_parse_layout(data))


def _parse_layout(data: bytes) -> pb.Layout:
    try:
        return pb.Layout.FromString(data)
    except DecodeError as error:
        raise WireError(f"not a layout: {error}") from None


def _seq(seq: int) -> int:
    if seq > MAX_SEQ:
        raise WireError(f"seq {seq} is above 2^63-1")
    return seq


def _name(what: str, text: str) -> str:
    if len(text) > MAX_NAME:
        raise WireError(f"{what} of {len(text)} characters, more than {MAX_NAME}")
    return text


def _text(what: str, text: str) -> str:
    if len(text) > MAX_MESSAGE:
        raise WireError(f"{what[:MAX_NAME]} of {len(text)} characters, more than {MAX_MESSAGE}")
    return text
