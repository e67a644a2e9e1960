"""A collector's enrolment port in this process: a real CA, real TLS, a real database."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from collector.config import Identity
from collector.identity.attempts import Attempts
from collector.identity.credentials import enrolment_port_credentials
from collector.identity.desk import Desk
from collector.identity.enrolment_server import EnrolmentServicer, create_enrolment_server
from collector.identity.keyring import Keyring
from collector.identity.tokens import hash_token, make_token
from collector.store.event_log import Filter, StoredEvent, load_events
from collector.store.store import Store
from collector.store.tokens import NewToken, add_tokens
from fleetpulse.enrolment import EnrolContext, Enrolled, EnrolRequest, enroll
from fleetpulse.model import HostId

_Result = TypeVar("_Result")
HOUR = 3_600_000


def csr(key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A certificate request for a new key, or for this one."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def application(token: str, **changes: object) -> EnrolRequest:
    """What a machine says to become a host."""
    fields: dict[str, object] = {
        "token": token,
        "host_id": HostId(str(uuid.uuid4())),
        "hostname": "web-1",
        "machine_id": "machine",
        "hardware_id": "hardware",
        "agent_version": "0.1.0",
        "csr": csr(),
    }
    return EnrolRequest(**{**fields, **changes})  # type: ignore[arg-type] - any of its fields


class EnrolmentSite:
    """The port, while the block runs. `rate` is how many refusals a minute an address may have, by `clock`.

    `visit` is after how many seconds somebody has left who asked for the CA certificates and did no more.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        *,
        rate: float = 1_000,
        visit: float = 60,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.store = store
        self.keyring = Keyring(identity, lambda: ["localhost", "127.0.0.1"])
        self.keyring.open()
        self.now = time.time_ns() // 1_000_000
        self.desk = Desk(store, self.keyring, lambda: self.now, 86_400)
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._servicer = EnrolmentServicer(self.desk, Attempts(rate, clock), self.counts, visit)
        self.calls: dict[str, list[float]] = {}
        """When GetTrust was called, by the connection over which it came."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> EnrolmentSite:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._server.stop(None))
        self.desk.close(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        get_trust = self._servicer.get_trust

        async def noted(context: EnrolContext) -> bytes:
            self.calls.setdefault(context.peer(), []).append(time.monotonic())
            return await get_trust(context)

        self._servicer.get_trust = noted  # type: ignore[method-assign] - to see who calls
        self._server = create_enrolment_server(self._servicer)
        credentials = enrolment_port_credentials(self.keyring)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """What the coroutine returns, run where the server runs."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def channel(self) -> grpc.Channel:
        """A connection that trusts the CA, and checks the name."""
        credentials = grpc.ssl_channel_credentials(self.keyring.current.bundle)
        return grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, [("grpc.enable_retries", 0)])

    def enroll(self, request: EnrolRequest) -> Enrolled:
        """Enrol over the wire. Raises grpc.RpcError."""
        with self.channel() as channel:
            return enroll(channel, request, 20)

    def token(self, **changes: object) -> str:
        """A new token's text."""
        text = make_token()
        fields: dict[str, object] = {
            "hash": hash_token(text),
            "hostname": "",
            "host": None,
            "groups": (),
            "uses": 1,
            "created_at": self.now,
            "expires_at": self.now + HOUR,
        }
        with self.store.transaction() as tx:
            add_tokens(tx, [NewToken(**{**fields, **changes})])  # type: ignore[arg-type] - any of its fields
        return text

    def events(self, *kinds: str) -> list[StoredEvent]:
        """What was written down."""
        with self.store.transaction(write=False) as tx:
            return load_events(tx, Filter(kinds=kinds), 100)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows."""
        with self.store.transaction(write=False) as tx:
            return tx.query(statement)


def refusal(attempt: Callable[[], object]) -> tuple[str, str]:
    """The status and text with which an attempt is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        attempt()
    assert isinstance(refused.value, grpc.Call)
    return refused.value.code().name, refused.value.details() or ""
