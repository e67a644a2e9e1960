"""Who may speak on the report port: real TLS, a real collector, certificates of every kind."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from collector.identity.authority import Authority, Issued, parse_certificates, parse_keys
from collector.ingest.items import ENROL_AGAIN
from collector.store import certificates
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.hosts import add_hosts, find_hosts, remove_host
from collector.store.store import Store, open_store
from fleetpulse.convert import Ack, Certificate, Trust, Welcome
from fleetpulse.model import Hello
from tests.collector.fleet import record
from tests.collector.machine import Machine, Refusal, hello, machine
from tests.processes import Program, Site
from tests.relay import Relay

_Result = TypeVar("_Result")
HOUR = 3600.0


class Credentials(NamedTuple):
    """A certificate and its key, as a host has them."""

    issued: Issued
    key: bytes
    ca: bytes

    @property
    def channel(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.issued.chain)


class Port:
    """The report port of a collector with TLS, and what is behind it."""

    def __init__(self, site: Site, collector: Program):
        self.site = site
        self.collector = collector
        self.store: Store = open_store(site.database_url, pool_size=1)
        ca = site.ca_bundle.read_bytes()
        [key] = parse_keys((site.identity_dir / "ca.key").read_bytes())
        self.authority = Authority(parse_certificates(ca)[0], key)

    def sign(self, host_id: str, lifetime: float = HOUR) -> Credentials:
        """A certificate that the CA has signed, and nothing more."""
        key, request = key_and_request()
        issued = self.authority.sign_host(request, host_id, time.time_ns() // 1_000_000, lifetime)
        return Credentials(issued, key, self.site.ca_bundle.read_bytes())

    def enroll(self, said: Hello, lifetime: float = HOUR) -> Credentials:
        """Make the host of a Hello known, with a certificate that is accepted."""
        signed = self.sign(said.host_id, lifetime)
        with self.store.transaction() as tx:
            add_hosts(tx, [record("web-1", host_id=said.host_id, boot_id="", address="")], 1)
        self.accept(said.host_id, signed.issued)
        return signed

    def accept(self, host_id: str, issued: Issued) -> None:
        with self.store.transaction() as tx:
            host = find_hosts(tx, [host_id])[host_id].host
            row = CertificateRow(issued.fingerprint, host, issued.issuer, issued.issued_at, issued.not_after)
            add_certificate(tx, row)

    def fingerprints(self, host_id: str) -> set[bytes]:
        """Of the host's certificates that are accepted."""
        with self.store.transaction(write=False) as tx:
            host = find_hosts(tx, [host_id])[host_id].host
            return {row.fingerprint for row in certificates.load_certificates(tx, [host]).get(host, [])}

    def counts(self) -> Any:
        """What it has counted until its end."""
        assert self.collector.stop() == 0
        return json.loads(self.collector.wait_for_log('"stopped"'))


def key_and_request() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, request.public_bytes(serialization.Encoding.DER)


@pytest.fixture
def port(sqlite_site: Site) -> Iterator[Port]:
    opened = Port(sqlite_site, sqlite_site.collector(tls="on"))
    yield opened
    opened.store.close()


@pytest.fixture
def any_port(site: Site) -> Iterator[Port]:
    """Once on each kind of database."""
    opened = Port(site, site.collector(tls="on"))
    yield opened
    opened.store.close()


def run(scenario: Coroutine[Any, Any, _Result]) -> _Result:
    async def bounded() -> _Result:
        async with asyncio.timeout(60):
            return await scenario

    return asyncio.run(bounded())


async def greet(port: Port, said: Hello, credentials: Credentials) -> Welcome | Refusal:
    async with machine(port.site.address, said, credentials.channel) as one:
        return await one.greet()


def trust_id(port: Port) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(port.site.ca_bundle.read_bytes())
    return digest.finalize()


def test_a_certificate_speaks_for_its_own_host_alone(any_port: Port) -> None:
    """Each of those who may not gets its own answer, and each is counted."""
    port = any_port
    mine, others, removed, revoked = (hello() for _ in range(4))
    good = port.enroll(mine)
    port.enroll(others)
    gone, bad = port.enroll(removed), port.enroll(revoked)
    with port.store.transaction() as tx:
        known = find_hosts(tx, [removed.host_id, revoked.host_id])
        remove_host(tx, known[removed.host_id].host)
        certificates.revoke_host(tx, known[revoked.host_id].host, time.time_ns() // 1_000_000)

    async def scenario() -> dict[str, Welcome | Refusal]:
        return {
            "good": await greet(port, mine, good),
            "another host": await greet(port, others, good),
            "removed": await greet(port, removed, gone),
            "revoked": await greet(port, revoked, bad),
            "not in the list": await greet(port, mine, port.sign(mine.host_id)),
            "unheard of": await greet(port, stranger, port.sign(stranger.host_id)),
        }

    stranger = hello()
    answers = run(scenario())
    assert isinstance(answers.pop("good"), Welcome)
    refused = {
        who: (answer.code.name, answer.text.partition(";")[0])
        for who, answer in answers.items()
        if isinstance(answer, Refusal)
    }
    unknown = "this certificate is not known here: its host was removed, or has a newer one"
    assert refused == {
        "another host": (
            "PERMISSION_DENIED",
            f"the certificate names urn:uuid:{mine.host_id}, the Hello is of {others.host_id}",
        ),
        "removed": ("UNAUTHENTICATED", unknown),
        "revoked": ("UNAUTHENTICATED", "this host's certificate was revoked"),
        "not in the list": ("UNAUTHENTICATED", unknown),
        "unheard of": ("UNAUTHENTICATED", unknown),
    }
    with port.store.transaction(write=False) as tx:
        assert not find_hosts(tx, [stranger.host_id]), "nothing was made for it"
    counts = port.counts()
    assert (counts["wrong_host"], counts["unknown_certificate"], counts["revoked"]) == (1, 3, 1)


def test_a_revocation_ends_the_stream_within_five_seconds(any_port: Port) -> None:
    port = any_port
    said, other = hello(interval=60_000, ttl=180_000), hello()
    credentials, others = port.enroll(said), port.enroll(other)

    async def scenario() -> float:
        address = port.site.address
        async with (
            machine(address, said, credentials.channel) as one,
            machine(address, other, others.channel) as two,
        ):
            for each in (one, two):
                assert isinstance(await each.greet(), Welcome)
                assert isinstance(await each.report(), Ack)
            began = time.monotonic()
            await asyncio.to_thread(_revoke, port, said)
            ended = await one.expect(Ack)
            assert isinstance(ended, Refusal)
            assert (ended.code, ended.text) == (
                grpc.StatusCode.UNAUTHENTICATED,
                f"this host's certificate was revoked; {ENROL_AGAIN}",
            )
            seconds = time.monotonic() - began
            assert isinstance(await two.report(), Ack), "the others go on"
            assert isinstance(await greet(port, said, credentials), Refusal)
            return seconds

    assert run(scenario()) < 15


def _revoke(port: Port, said: Hello) -> None:
    with port.store.transaction() as tx:
        host = find_hosts(tx, [said.host_id])[said.host_id].host
        certificates.revoke_host(tx, host, time.time_ns() // 1_000_000)


def test_a_stream_ends_with_its_certificate(port: Port) -> None:
    said = hello(interval=60_000, ttl=180_000)
    credentials = port.enroll(said, lifetime=4)

    async def scenario() -> tuple[Refusal | Ack, float]:
        async with machine(port.site.address, said, credentials.channel) as one:
            assert isinstance(await one.greet(), Welcome)
            return await one.expect(Ack), time.time()

    ended, at = run(scenario())
    assert ended == Refusal(
        grpc.StatusCode.UNAUTHENTICATED, f"this host's certificate has expired; {ENROL_AGAIN}"
    )
    assert 0 <= at - credentials.issued.not_after / 1000 < 5
    assert port.counts()["expired"] == 1


def test_a_certificate_is_renewed_on_the_stream_and_its_first_use_ends_the_old_one(any_port: Port) -> None:
    port = any_port
    said = hello()
    old = port.enroll(said)
    key, request = key_and_request()

    async def scenario() -> Certificate:
        async with machine(port.site.address, said, old.channel) as one:
            assert isinstance(await one.greet(), Welcome)
            assert isinstance(await one.report(), Ack)
            answer = await one.ask_renewal(request)
            assert isinstance(answer, Certificate)
            assert answer.chain
            assert isinstance(await one.report(), Ack), "the old one is good until the new one is used"
            assert len(port.fingerprints(said.host_id)) == 2
            new = old._replace(issued=old.issued._replace(chain=answer.chain), key=key)
            async with machine(port.site.address, said, new.channel) as two:
                assert isinstance(await two.greet(), Welcome)
                assert isinstance(await two.report(), Ack)
            return answer

    answer = run(scenario())
    [certificate] = x509.load_pem_x509_certificates(answer.chain)[:1]
    assert port.fingerprints(said.host_id) == {certificate.fingerprint(hashes.SHA256())}
    assert isinstance(run(greet(port, said, old)), Refusal)
    counts = port.counts()
    assert (counts["renewed"], counts["unknown_certificate"]) == (1, 1)


def test_a_renewal_that_fails_does_not_stop_the_reports(port: Port) -> None:
    said = hello()
    credentials = port.enroll(said)

    async def scenario() -> None:
        async with machine(port.site.address, said, credentials.channel) as one:
            assert isinstance(await one.greet(), Welcome)
            assert await one.ask_renewal(b"no request") == Certificate(b"")
            assert isinstance(await one.report(), Ack)

    run(scenario())
    assert port.fingerprints(said.host_id) == {credentials.issued.fingerprint}
    assert port.counts()["not_renewed"] == 1
    assert "PKCS #10" in port.collector.wait_for_log("not_renewed")


def test_a_host_that_asks_for_certificates_all_the_time_is_paced(port: Port) -> None:
    said = hello()
    credentials = port.enroll(said)

    async def scenario() -> tuple[Machine, float]:
        began = time.monotonic()
        async with machine(port.site.address, said, credentials.channel) as one:
            assert isinstance(await one.greet(), Welcome)
            for _ in range(7):
                await one.ask_renewal(b"no request")
            return one, time.monotonic() - began

    one, seconds = run(scenario())
    assert one.throttled
    assert seconds > 1


def test_a_connection_that_is_older_than_the_end_of_its_certificate_is_no_way_in(port: Port) -> None:
    """The handshake was in time. Only the list tells of the end, here as if it were an hour ago."""
    said = hello()
    signed = port.sign(said.host_id)
    now = time.time_ns() // 1_000_000
    with port.store.transaction() as tx:
        add_hosts(tx, [record("web-1", host_id=said.host_id)], 1)
    port.accept(said.host_id, signed.issued._replace(not_after=now - 3_600_000))
    answer = run(greet(port, said, signed))
    assert answer == Refusal(
        grpc.StatusCode.UNAUTHENTICATED, f"this host's certificate has expired; {ENROL_AGAIN}"
    )
    assert port.counts()["expired"] == 1


def test_without_tls_nobody_gets_a_certificate(sqlite_site: Site) -> None:
    sqlite_site.collector()

    async def scenario() -> Certificate | Refusal:
        async with machine(sqlite_site.address, hello()) as one:
            await one.greet()
            return await one.ask_renewal(key_and_request()[1])

    answer = run(scenario())
    assert isinstance(answer, Refusal)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT


def test_agents_are_told_whom_to_trust_when_they_do_not_know_and_when_it_changes(port: Port) -> None:
    knows = hello(trust_id=trust_id(port))
    does_not = hello()
    mine, others = port.enroll(knows), port.enroll(does_not)
    bundle = port.site.ca_bundle.read_bytes()

    async def scenario() -> tuple[Trust | Refusal, Trust | Refusal]:
        address = port.site.address
        async with (
            machine(address, knows, mine.channel) as one,
            machine(address, does_not, others.channel) as two,
        ):
            assert isinstance(await one.greet(), Welcome)
            assert isinstance(await two.greet(), Welcome)
            assert await two.expect(Trust) == Trust(bundle, 0)
            assert isinstance(await one.report(), Ack), "nothing to tell it"
            await asyncio.to_thread(port.site.cli, "ca", "rotate", check=True)
            return await one.expect(Trust), await two.expect(Trust)

    for trust in run(scenario()):
        assert isinstance(trust, Trust)
        assert trust.ca_bundle == port.site.ca_bundle.read_bytes()
        assert len(parse_certificates(trust.ca_bundle)) == 2
        assert trust.renew_within == 1000


@asynccontextmanager
async def silent_streams(port: Port, address: str, shown: Credentials, count: int) -> AsyncIterator[None]:
    """Streams that say nothing, each on a connection of its own."""
    async with AsyncExitStack() as opened:
        for _ in range(count):
            silent = await opened.enter_async_context(machine(address, hello(), shown.channel))
            await silent.call.wait_for_connection()
        yield


def test_one_certificate_does_not_take_all_streams(port: Port) -> None:
    said, other = hello(), hello()
    credentials, others = port.enroll(said), port.enroll(other)
    address = port.site.address

    async def scenario() -> Refusal | Ack:
        async with silent_streams(port, address, credentials, 8):
            assert isinstance(await greet(port, other, others), Welcome)
            async with machine(address, said, credentials.channel) as one:
                return await one.expect(Ack)

    refused = run(scenario())
    assert isinstance(refused, Refusal)
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(run(greet(port, said, credentials)), Welcome), "when they are gone it may again"


def test_a_copy_of_a_certificate_elsewhere_does_not_keep_the_host_out(port: Port) -> None:
    said = hello()
    credentials = port.enroll(said)

    async def scenario() -> Welcome | Refusal:
        with Relay(port.site.address, source="127.0.0.2") as elsewhere:
            async with silent_streams(port, elsewhere.address, credentials, 8):
                async with machine(elsewhere.address, said, credentials.channel) as copy:
                    assert isinstance(await copy.expect(Ack), Refusal)
                return await greet(port, said, credentials)

    assert isinstance(run(scenario()), Welcome)


def test_health_checks_take_nobodys_place(sqlite_site: Site) -> None:
    """Not those of a revoked certificate either: checks that never ask, and calls that might last for ever."""
    opened = Port(sqlite_site, sqlite_site.collector(tls="on", limits_connections="40"))
    said, bad = hello(), hello()
    credentials, revoked = opened.enroll(said), opened.enroll(bad)
    _revoke(opened, bad)
    check, watch = (f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch"))

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def codes(channel: grpc.aio.Channel, method: str, count: int) -> Counter[str]:
        calls: list[Any] = [channel.stream_unary(method)(never()) for _ in range(count)]
        return Counter([(await call.code()).name for call in calls])

    async def scenario() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(
                    grpc.aio.secure_channel(opened.site.address, revoked.channel, options=options)
                )
                for _ in range(4)
            ]
            for channel in channels:
                assert await codes(channel, watch, 16) == {"UNIMPLEMENTED": 16}
            first = asyncio.create_task(codes(channels[0], check, 16))
            while not await is_refused(channels[0]):  # noqa: ASYNC110 - they are there
                await asyncio.sleep(0.01)
            for channel in channels[1:]:
                assert await codes(channel, check, 16) == {"RESOURCE_EXHAUSTED": 16}
            assert isinstance(await greet(opened, said, credentials), Welcome)
            assert set(await first) == {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
            assert not await is_refused(channels[0]), "when they are gone it may again"

    async def is_refused(channel: grpc.aio.Channel) -> bool:
        try:
            await HealthStub(channel).Check(HealthCheckRequest())
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return False

    run(scenario())
    opened.store.close()
    assert opened.counts()["too_many_streams"] > 48
