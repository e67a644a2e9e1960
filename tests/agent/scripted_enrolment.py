"""An enrolment port that a test can tell what to do; it speaks the real wire over real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from fleetpulse.convert import WireError
from fleetpulse.enrolment import EnrolContext, Enrolled, EnrolRequest, serve_enrolment
from tests.agent.pki import LOOPBACK, Ca


@dataclass
class Office:
    """What the port does, and what it saw. `ca` signs hosts; `shown_by` signed the server's certificate."""

    ca: Ca
    bundle: bytes = b""  # empty: the CA alone
    claimed_bundle: bytes = b""  # what GetTrust says; empty: the truth
    refuse: tuple[grpc.StatusCode, str] | None = None
    begin: float = -60
    lifetime: float = 3600
    certify_host: str = ""  # instead of who asks
    forget_csr: bool = False  # certify another key
    name: str = ""

    requests: list[EnrolRequest] = field(default_factory=list)
    asked_for_trust: int = 0

    async def get_trust(self, _: EnrolContext) -> bytes:
        self.asked_for_trust += 1
        return self.claimed_bundle or self.bundle or self.ca.pem

    async def enroll(self, request: EnrolRequest, context: EnrolContext) -> Enrolled:
        self.requests.append(request)
        if self.refuse:
            await context.abort(*self.refuse)
        csr = None if self.forget_csr else request.csr
        _, chain = self.ca.host(self.certify_host or request.host_id, csr, self.begin, self.lifetime)
        return Enrolled(chain, self.bundle or self.ca.pem, self.name or request.hostname)

    async def malformed(self, error: WireError, context: EnrolContext) -> None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


@asynccontextmanager
async def enrolling(
    office: Office,
    shown_by: Ca | None = None,
    names: Sequence[str] = LOOPBACK,
    begin: float = -60,
    end: float = 3600,
) -> AsyncIterator[int]:
    """Serve on loopback; yields the port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    serve_enrolment(server, office.get_trust, office.enroll, office.malformed)
    credentials = grpc.ssl_server_credentials([(shown_by or office.ca).server(names, begin, end)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
