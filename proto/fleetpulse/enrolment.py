"""How a machine becomes a host: the values, and the typed calls behind them.

See proto/fleetpulse/v1/enrolment.proto. Like `convert` and `rpc`, this is where wire types stop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import grpc.aio

from fleetpulse.convert import MAX_CSR, MAX_NAME, WireError
from fleetpulse.model import HostId, parse_host_id
from fleetpulse.v1 import enrolment_pb2 as pb
from fleetpulse.v1.enrolment_pb2_grpc import EnrolmentServiceStub

ENROLL_PORT_OFFSET = 1
"""Unless configured otherwise, machines enrol at the port after the one to which they report."""

MAX_TOKEN = 256  # characters


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """What a machine says to become a host. `csr` is PKCS #10 in DER; the token never shows in a repr."""

    token: str = field(repr=False)
    host_id: HostId
    hostname: str
    machine_id: str
    hardware_id: str
    agent_version: str
    csr: bytes = field(repr=False)


class Enrolled(NamedTuple):
    """What it gets: its certificate chain and the CA bundle as PEM, and what its record is called."""

    chain: bytes
    ca_bundle: bytes
    name: str


EnrolContext = grpc.aio.ServicerContext[Any, Any]
"""One call, seen from the collector."""


def urn_of(host_id: str) -> str:
    """How a certificate names its host (RFC 9562, section 4): the one URI among its alternative names."""
    return f"urn:uuid:{host_id}"


def serve_enrolment(
    server: grpc.aio.Server,
    get_trust: Callable[[EnrolContext], Awaitable[bytes]],
    enroll: Callable[[EnrolRequest, EnrolContext], Awaitable[Enrolled]],
    refuse: Callable[[WireError, EnrolContext], Awaitable[None]],
) -> None:
    """Have the two handlers serve enrolment on `server`. `refuse` ends a call whose request makes no sense."""

    async def handle_trust(_: bytes, context: EnrolContext) -> pb.GetTrustResponse:
        return pb.GetTrustResponse(ca_bundle=await get_trust(context))

    async def handle_enroll(data: bytes, context: EnrolContext) -> pb.EnrollResponse:
        try:
            request = _decode(data)
        except WireError as error:
            await refuse(error, context)
            raise
        enrolled = await enroll(request, context)
        return pb.EnrollResponse(chain=enrolled.chain, ca_bundle=enrolled.ca_bundle, name=enrolled.name)

    service = pb.DESCRIPTOR.services_by_name["EnrolmentService"]
    # Bytes: a request that cannot be decoded is the caller's mistake, which gRPC would call ours.
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetTrust": grpc.unary_unary_rpc_method_handler(
            handle_trust, None, pb.GetTrustResponse.SerializeToString
        ),
        "Enroll": grpc.unary_unary_rpc_method_handler(
            handle_enroll, None, pb.EnrollResponse.SerializeToString
        ),
    }
    server.add_registered_method_handlers(service.full_name, handlers)


def fetch_trust(channel: grpc.Channel, timeout: float) -> bytes:
    """The CA bundle, as PEM, of whoever answers. Raises grpc.RpcError."""
    return EnrolmentServiceStub(channel).GetTrust(pb.GetTrustRequest(), timeout=timeout).ca_bundle


def enroll(channel: grpc.Channel, request: EnrolRequest, timeout: float) -> Enrolled:
    """Trade the token for a certificate. Raises grpc.RpcError; its details are meant for the admin."""
    answer = EnrolmentServiceStub(channel).Enroll(
        pb.EnrollRequest(
            token=request.token,
            host_id=request.host_id,
            hostname=request.hostname,
            machine_id=request.machine_id,
            hardware_id=request.hardware_id,
            agent_version=request.agent_version,
            csr=request.csr,
        ),
        timeout=timeout,
    )
    return Enrolled(answer.chain, answer.ca_bundle, answer.name)


def _decode(data: bytes) -> EnrolRequest:
    """Raises WireError for what no agent of ours would send."""
    try:
        message = pb.EnrollRequest.FromString(data)
        host_id = parse_host_id(message.host_id)
    except Exception as error:  # noqa: BLE001 - DecodeError or ValueError, by the protobuf implementation
        raise WireError(f"not an enrolment: {error}") from None
    for what in ("hostname", "machine_id", "hardware_id", "agent_version"):
        if len(getattr(message, what)) > MAX_NAME:
            raise WireError(f"{what} of more than {MAX_NAME} characters")
    if not message.hostname:
        raise WireError("hostname is empty")
    if not 0 < len(message.token) <= MAX_TOKEN:
        raise WireError(f"token of {len(message.token)} characters, expected 1 to {MAX_TOKEN}")
    if not 0 < len(message.csr) <= MAX_CSR:
        raise WireError(f"certificate request of {len(message.csr)} bytes, expected 1 to {MAX_CSR}")
    return EnrolRequest(
        message.token,
        host_id,
        message.hostname,
        message.machine_id,
        message.hardware_id,
        message.agent_version,
        message.csr,
    )
