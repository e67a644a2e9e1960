"""The report port's TLS: who gets through the handshake, with which certificates, and what is counted."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio

from collector.config import Identity
from collector.identity import credentials
from collector.identity.authority import Authority
from collector.identity.handshakes import Handshakes
from collector.identity.keyring import Keyring

NAMES = ("localhost", "127.0.0.1")
METHOD = "/x.Test/Say"


def now() -> int:
    return time.time_ns() // 1_000_000


async def say(_: bytes, context: aio.ServicerContext[bytes, bytes]) -> bytes:
    return b"welcome"


@asynccontextmanager
async def serving(server_credentials: grpc.ServerCredentials, handshakes: Handshakes) -> AsyncIterator[int]:
    server = aio.server(interceptors=[handshakes])
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_registered_method_handlers("x.Test", handlers)
    port = server.add_secure_port("127.0.0.1:0", server_credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, channel_credentials: grpc.ChannelCredentials | None) -> str:
    """What a client is told: the answer, or the name of the status."""
    address = f"127.0.0.1:{port}"
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    channel = (
        aio.secure_channel(address, channel_credentials, options)
        if channel_credentials
        else aio.insecure_channel(address, options)
    )
    async with channel:
        try:
            return str(await channel.unary_unary(METHOD)(b"", timeout=10), "utf-8")
        except aio.AioRpcError as error:
            return error.code().name


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    keyring = Keyring(Identity(dir=tmp_path / "identity"), lambda: NAMES)
    keyring.open()
    return keyring


def client(ca: Authority, bundle: bytes, lifetime: float = 3600, age: int = 0) -> grpc.ChannelCredentials:
    key, chain = ca.sign_server(["client"], now() - age, lifetime)
    return grpc.ssl_channel_credentials(bundle, key, chain)


def test_only_a_certificate_of_a_trusted_ca_gets_through_and_the_rest_is_counted(keyring: Keyring) -> None:
    async def scenario() -> None:
        ours, theirs = keyring.current.authority, Authority.create(now())
        assert ours is not None
        bundle = keyring.current.bundle
        handshakes = Handshakes()
        async with serving(credentials.report_port_credentials(keyring, handshakes), handshakes) as port:
            assert await call(port, client(ours, bundle)) == "welcome"
            assert handshakes.take_failed(at_once=True) == 0
            for hostile in (
                grpc.ssl_channel_credentials(bundle),
                client(theirs, bundle),
                client(ours, bundle, 10, age=20_000),
                None,
            ):
                assert await call(port, hostile) == "UNAVAILABLE"
                # gRPC may try again by itself, so there can be more than one.
                assert handshakes.take_failed(at_once=True) >= 1
            assert await call(port, client(ours, theirs.certificate_pem)) == "UNAVAILABLE"
            assert await call(port, client(ours, bundle)) == "welcome"

    asyncio.run(scenario())


def test_the_enrolment_port_asks_for_no_certificate(keyring: Keyring) -> None:
    async def scenario() -> None:
        bundle = keyring.current.bundle
        async with serving(credentials.enrolment_port_credentials(keyring), Handshakes()) as port:
            assert await call(port, grpc.ssl_channel_credentials(bundle)) == "welcome"
            assert await call(port, None) == "UNAVAILABLE"

    asyncio.run(scenario())


def test_replaced_certificates_are_used_without_a_restart(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_LOOK", 0.0)

    async def scenario() -> None:
        old = keyring.current
        assert old.authority is not None
        handshakes = Handshakes()
        async with serving(credentials.report_port_credentials(keyring, handshakes), handshakes) as port:
            old_host = client(old.authority, old.bundle)
            assert await call(port, old_host) == "welcome"
            admin = Keyring(Identity(dir=tmp_path / "identity"), lambda: NAMES)
            new = admin.rotate()
            assert new.authority is not None
            assert await call(port, old_host) == "welcome"
            assert await call(port, client(new.authority, old.bundle)) == "welcome"
            admin.finish()
            assert await call(port, old_host) == "UNAVAILABLE"
            assert await call(port, client(new.authority, new.authority.certificate_pem)) == "welcome"

    asyncio.run(scenario())


def test_only_tls_1_2_and_1_3_with_forward_secrecy(keyring: Keyring, tmp_path: Path) -> None:
    def greet(port: int, version: ssl.TLSVersion, ciphers: str = "ALL:@SECLEVEL=0") -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers(ciphers)
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(tmp_path / "identity" / "server.pem")
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            try:
                with context.wrap_socket(raw) as secured:
                    return str(secured.version())
            except OSError:
                return "refused"

    async def scenario() -> dict[str, str]:
        handshakes = Handshakes()
        trials = [
            (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0"),
            (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
            (ssl.TLSVersion.TLSv1_2, "kRSA:@SECLEVEL=0"),
            (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM"),
            (ssl.TLSVersion.TLSv1_3, "ALL"),
        ]
        async with serving(credentials.report_port_credentials(keyring, handshakes), handshakes) as port:
            return {
                f"{version.name} {ciphers}": await asyncio.to_thread(greet, port, version, ciphers)
                for version, ciphers in trials
            }

    with pytest.warns(DeprecationWarning, match="TLSVersion"):
        found = asyncio.run(scenario())
    assert list(found.values()) == ["refused", "refused", "refused", "TLSv1.2", "TLSv1.3"], found


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class TestCounting:
    """Handshakes against calls, by a clock that the test sets."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def handshakes(self, clock: Clock) -> Handshakes:
        return Handshakes(clock)

    def begin(self, handshakes: Handshakes, times: int = 1) -> None:
        for _ in range(times):
            handshakes.begin()

    def test_a_slow_connection_is_given_time(self, handshakes: Handshakes, clock: Clock) -> None:
        clock.advance(20)
        assert handshakes.take_failed() == 0
        self.begin(handshakes, 3)
        assert handshakes.take_failed() == 0
        clock.advance(20)
        assert handshakes.take_failed() == 0  # begun since the last look
        handshakes.hear("a")
        clock.advance(20)
        assert handshakes.take_failed() == 2
        clock.advance(20)
        assert handshakes.take_failed() == 0

    def test_further_calls_do_not_make_up_for_others(self, handshakes: Handshakes, clock: Clock) -> None:
        self.begin(handshakes)
        for _ in range(10):
            handshakes.hear("a")
            clock.advance(61)
        assert handshakes.take_failed(at_once=True) == 0
        self.begin(handshakes, 5)
        assert handshakes.take_failed(at_once=True) == 5

    def test_peers_are_forgotten(self, handshakes: Handshakes, clock: Clock) -> None:
        for number in range(25_000):
            self.begin(handshakes)
            handshakes.hear(str(number))
        assert len(handshakes._peers) == 20_000
        clock.advance(60)
        handshakes.hear("x")
        assert len(handshakes._peers) == 1
