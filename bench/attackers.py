"""Agents that behave as badly as they can, to be run beside good ones.

    python -m bench.attackers NAME --collector 127.0.0.1:18443 --seconds 10

Each attack goes on for so long and no longer, and only ever talks to a loopback address. With --enroll the
attacker is a host with a certificate of its own, and speaks TLS. Unless --nice says otherwise it steps back for
everybody else who wants the processor, so that what is compared is the collector's answer, not who wins it.

Prints a JSON line when it begins, and one at the end: how often it did what it does, and with which status codes the
collector answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import resource
import ssl
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from agent.certificate import pem_blocks
from agent.credential_files import Stored
from agent.keys import make_key_and_request
from bench.enrolled_host import Enroller, add_enrolment_options
from bench.simulated_host import LAYOUT
from collector.config import Limits
from collector.identity.authority import Authority
from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Hello, HostId, Layout, Report, State
from fleetpulse.v1 import ingest_pb2 as pb

METHOD = "/fleetpulse.v1.IngestService/Stream"
BATCH = Limits().batch_reports
"""Reports in a message, as many as a collector takes by default."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 200),
]
_WIDE = Layout(tuple(CheckLayout(CheckKey("plugin", str(number)), ()) for number in range(2_000)))

said: Counter[str] = Counter()
"""What was done and what the collector said to it."""


class Attack:
    """Where to, and until when by the monotonic clock. `stored` are its credentials; None: plaintext."""

    def __init__(self, address: str, seconds: float, name: str = "attacker"):
        self.name = name
        self.address = address
        self.ends_at = time.monotonic() + seconds
        self.host_id = HostId(str(uuid.uuid4()))
        self.instance = ""
        self.stored: Stored | None = None

    async def enroll(self, enroller: Enroller) -> None:
        """Become a host with a certificate."""
        self.stored = await enroller.credentials(self.host_id, self.name).load()

    def another(self) -> Attack:
        """One more machine with the same identity."""
        twin = Attack(self.address, 0, self.name)
        twin.ends_at, twin.host_id, twin.stored = self.ends_at, self.host_id, self.stored
        return twin

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.ends_at

    def hello(self, **change: Any) -> pb.StreamRequest:
        """This attacker's Hello, as it should be but for `change`."""
        names = {"host_id": self.host_id, "hostname": self.name, "machine_id": "m", "boot_id": "b"}
        fields = {**names, "epoch": 1, "agent_version": "1", "interval": 1000, "ttl": 3_600_000}
        fields |= {"instance": self.instance, "trust_id": self.stored.trust_id if self.stored else b""}
        return convert.encode_hello(Hello(**{**fields, **change}))

    async def streams(self, speak: Callable[[Any], Awaitable[None]], abreast: int = 1) -> None:
        """Open streams one after the other, `abreast` at once on one connection, and note how each ends."""
        async with self._channel() as channel:
            await asyncio.gather(*[self._one_after_the_other(channel, speak) for _ in range(abreast)])

    def _channel(self) -> grpc.aio.Channel:
        if self.stored is None:
            return grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        own = self.stored
        credentials = grpc.ssl_channel_credentials(own.ca_bundle, own.key, own.chain)
        return grpc.aio.secure_channel(self.address, credentials, options=_OPTIONS)

    async def _one_after_the_other(self, channel: Any, speak: Callable[[Any], Awaitable[None]]) -> None:
        while self.goes_on:
            call = channel.stream_stream(METHOD)()
            said["streams"] += 1
            try:
                async with asyncio.timeout(max(0.0, self.ends_at - time.monotonic())):
                    await speak(call)
                    while await call.read() is not grpc.aio.EOF:
                        pass
                    said[(await call.code()).name] += 1
            except TimeoutError:
                call.cancel()
            except grpc.aio.AioRpcError as error:
                said[error.code().name] += 1
            except (asyncio.InvalidStateError, grpc.aio.BaseError):
                said["broken"] += 1


async def _send(call: Any, data: bytes) -> None:
    """Write without replacing the collector's status by one of gRPC's own; see `fleetpulse.rpc`."""
    await call.wait_for_connection()
    await call._cython_call.send_serialized_message(data)


def _batch(reports: list[Report]) -> bytes:
    return convert.encode_batch(map(convert.encode_report, reports)).SerializeToString()


async def _greet(attack: Attack, call: Any, layout: Layout = LAYOUT, **change: Any) -> None:
    await _send(call, attack.hello(**change).SerializeToString())
    answer = await call.read()
    if answer is grpc.aio.EOF:
        raise asyncio.InvalidStateError("ended instead of a Welcome")
    await _send(call, convert.encode_layout(layout).SerializeToString())


async def flood(attack: Attack) -> None:
    """As many reports in a message as may be, the next as soon as the last is acked: thousands a second if let."""
    values = tuple(random.random() for _ in range(LAYOUT.series_count))

    async def speak(call: Any) -> None:
        await _greet(attack, call, epoch=random.randrange(1, 2**62))
        for first in itertools.count(1, BATCH):
            await _send(call, _batch([Report(first + n, 1, LAYOUT, values) for n in range(BATCH)]))
            if await call.read() is grpc.aio.EOF:
                return
            said["messages"] += 1

    await attack.streams(speak)


async def deaf(attack: Attack) -> None:
    """One report a message, as fast as flow control lets it, and never an ack read."""
    values = tuple(random.random() for _ in range(LAYOUT.series_count))

    async def speak(call: Any) -> None:
        await _greet(attack, call, epoch=random.randrange(1, 2**62))
        for seq in itertools.count(1):
            await _send(call, _batch([Report(seq, 1, LAYOUT, values)]))
            said["messages"] += 1

    await attack.streams(speak)


async def heavy(attack: Attack) -> None:
    """Reports of 2,000 checks that all change their state each time: as many events as there can be."""

    async def speak(call: Any) -> None:
        await _greet(attack, call, _WIDE, epoch=random.randrange(1, 2**62))
        for seq in itertools.count(1):
            state = (State.CRITICAL, State.OK)[seq % 2]
            results = tuple(CheckResult(number, state, "m") for number in range(2_000))
            await _send(call, _batch([Report(seq, 1, _WIDE, (), results)]))
            if await call.read() is grpc.aio.EOF:
                return
            said["messages"] += 1

    await attack.streams(speak)


async def oversized(attack: Attack) -> None:
    """A report of 50 MB."""
    report = _batch([Report(1, 1, LAYOUT, (0.5,) * 6_250_000)])

    async def speak(call: Any) -> None:
        await _greet(attack, call)
        await _send(call, report)

    await attack.streams(speak)


async def crowded(attack: Attack) -> None:
    """A layout of 100,000 checks."""
    layout = pb.StreamRequest()
    layout.layout.checks.extend([pb.CheckLayout(name="c")] * 100_000)
    message = layout.SerializeToString()

    async def speak(call: Any) -> None:
        await _greet(attack, call)
        await _send(call, message)

    await attack.streams(speak)


async def garbage(attack: Attack) -> None:
    """Bytes that are no message, text that is not UTF-8, on eight streams at once."""
    good = attack.hello().SerializeToString()
    samples = [b"", b"\xff" * 500, good.replace(b"attacker", b"\xff\xfetacker"), good[:-3], os.urandom(2_000)]

    async def speak(call: Any) -> None:
        await _send(call, random.choice(samples))

    await attack.streams(speak, abreast=8)


async def absurd(attack: Attack) -> None:
    """Numbers that no machine measures, in every place that takes one."""
    numbers = [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, -1.0]
    ends = [2**63 - 1, -(2**63), 2**53, 0, -1]

    async def speak(call: Any) -> None:
        change: dict[str, Any] = random.choice(
            [{}, {}, {"ttl": 2**63}, {"epoch": 2**64 - 1}, {"interval": 0}]
        )
        await _greet(attack, call, **change)
        for seq in itertools.count(1):
            batch = pb.StreamRequest()
            report = batch.reports.reports.add(seq=seq, layout_id=LAYOUT.id)
            report.values.extend(random.choices(numbers, k=LAYOUT.series_count))
            report.measured_at_ms = random.choice([1, 1, 1, *ends])
            report.dropped = random.choice([0, 0, 2**63 - 1, 2**64 - 1])
            await _send(call, batch.SerializeToString())
            if await call.read() is grpc.aio.EOF:
                return
            said["messages"] += 1

    await attack.streams(speak, abreast=4)


async def backwards(attack: Attack) -> None:
    """Sequence numbers that go backwards, from one message to the next and within one."""
    values = (0.5,) * LAYOUT.series_count

    async def speak(call: Any) -> None:
        await _greet(attack, call)
        for seq in range(1_000, 0, -1):
            await _send(call, _batch([Report(seq, 1, LAYOUT, values)]))
            if await call.read() is grpc.aio.EOF:
                return
            said["messages"] += 1
            if seq % 50 == 0:
                await _send(call, _batch([Report(n, 1, LAYOUT, values) for n in (seq, seq - 1)]))

    await attack.streams(speak)


async def flapping(attack: Attack) -> None:
    """Another epoch with every stream, one after the other, each with a report."""
    values = (0.5,) * LAYOUT.series_count

    async def speak(call: Any) -> None:
        await _greet(attack, call, epoch=random.randrange(1, 2**62))
        await _send(call, _batch([Report(1, 1, LAYOUT, values)]))
        await call.read()
        await call.done_writing()

    await attack.streams(speak)


async def doubles(attack: Attack) -> None:
    """Two with one identity that nothing tells apart, each of which ends the other's stream."""
    await asyncio.gather(flapping_alive(attack.another()), flapping_alive(attack.another()))


async def clones(attack: Attack) -> None:
    """Three machines with one identity, and it shows: one of them lives, and the others want its place."""
    machines = [attack.another() for _ in range(3)]
    for number, machine in enumerate(machines):
        machine.instance = f"{os.getpid()}-{number}"
    await asyncio.gather(*[steady(machine) for machine in machines])


async def steady(attack: Attack) -> None:
    """As a good host does it: one report after the other, with pauses."""
    values = (0.5,) * LAYOUT.series_count
    epoch = random.randrange(1, 2**62)

    async def speak(call: Any) -> None:
        await _greet(attack, call, epoch=epoch)
        for seq in itertools.count(1):
            await _send(call, _batch([Report(seq, 1, LAYOUT, values)]))
            if await call.read() is grpc.aio.EOF:
                return
            await asyncio.sleep(0.3)

    await attack.streams(speak)


async def flapping_alive(attack: Attack) -> None:
    epoch = random.randrange(1, 2**62)
    values = (0.5,) * LAYOUT.series_count

    async def speak(call: Any) -> None:
        await _greet(attack, call, epoch=epoch)
        await _send(call, _batch([Report(1, 1, LAYOUT, values)]))

    await attack.streams(speak)


async def headers(attack: Attack) -> None:
    """Streams that are opened and say nothing, sixteen on each of 50 connections."""

    async def speak(call: Any) -> None:
        await call.wait_for_connection()

    await asyncio.gather(*[attack.streams(speak, abreast=16) for _ in range(50)])


async def _connections(attack: Attack, count: int, trickle: Callable[[Any], Awaitable[None]]) -> None:
    host, _, port = attack.address.rpartition(":")

    async def one() -> None:
        while attack.goes_on:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(max(0.0, attack.ends_at - time.monotonic())):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    said["connections"] += 1
                    talk = asyncio.ensure_future(trickle(writer))
                    try:
                        while await reader.read(1 << 16):
                            pass
                        said["cut off"] += 1
                    finally:
                        talk.cancel()
                        writer.close()

    await asyncio.gather(*[one() for _ in range(count)])


async def idle(attack: Attack) -> None:
    """2,000 TCP connections on which nothing is ever said."""

    async def nothing(_: Any) -> None:
        await asyncio.sleep(0)

    await _connections(attack, 2_000, nothing)


async def trickling(attack: Attack) -> None:
    """500 connections on which the first bytes of HTTP/2 come one at a time."""

    async def byte_by_byte(writer: Any) -> None:
        for byte in _PREFACE + bytes(9):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.5)

    await _connections(attack, 500, byte_by_byte)


async def impostors(attack: Attack) -> None:
    """With a good certificate, as somebody else."""

    async def speak(call: Any) -> None:
        await _send(call, attack.hello(host_id=str(uuid.uuid4())).SerializeToString())

    await attack.streams(speak, abreast=8)


async def strangers(attack: Attack) -> None:
    """With no certificate, with one of a CA of their own, or without TLS; eight at once, again and again."""
    host, _, port = attack.address.rpartition(":")
    known: list[ssl.SSLContext | None] = [
        None,
        _unverified(),
        _unverified(with_certificate_for=attack.host_id),
    ]

    async def one(number: int) -> None:
        for turn in itertools.count(number):
            if not attack.goes_on:
                return
            said["connections"] += 1
            try:
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_connection(host, int(port), ssl=known[turn % 3])
                    writer.write(_PREFACE + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                    # Whom a gRPC server takes, it sends its settings.
                    said["let in" if known[turn % 3] and await reader.read(1) else "cut off"] += 1
                    writer.close()
            except (OSError, TimeoutError):
                said["cut off"] += 1

    await asyncio.gather(*[one(number) for number in range(8)])


def _unverified(with_certificate_for: str = "") -> ssl.SSLContext:
    """Trusts everybody; with a certificate that a CA of nobody's has signed, if it is for somebody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if with_certificate_for:
        now = time.time_ns() // 1_000_000
        key, request = make_key_and_request()
        [csr] = pem_blocks(request, "CERTIFICATE REQUEST")
        issued = Authority.create(now).sign_host(csr, with_certificate_for, now, 3_600)
        with tempfile.NamedTemporaryFile() as pair:
            Path(pair.name).write_bytes(key + issued.chain)
            context.load_cert_chain(pair.name)
    return context


ATTACKS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        flood,
        deaf,
        heavy,
        oversized,
        crowded,
        garbage,
        absurd,
        backwards,
        flapping,
        doubles,
        clones,
        headers,
        idle,
        trickling,
    )
}

TLS_ATTACKS = {attack.__name__: attack for attack in (impostors, strangers)}
"""Those that make sense only where certificates are asked for."""


async def _run(options: argparse.Namespace) -> None:
    name = options.attack
    attack = Attack(options.collector, min(options.seconds, 600), f"attacker-{name}")
    enroller = Enroller.from_options(options)
    if enroller is not None:
        await attack.enroll(enroller)
    print(json.dumps({"begins": name}), flush=True)
    await {**ATTACKS, **TLS_ATTACKS}[name](attack)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("attack", choices=[*ATTACKS, *TLS_ATTACKS])
    parser.add_argument("--collector", default="127.0.0.1:18443", metavar="ADDRESS")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument(
        "--nice", type=int, default=10, help="how far it steps back for others, as nice(1) has it"
    )
    add_enrolment_options(parser)
    options = parser.parse_args()
    if not options.collector.startswith(("127.", "localhost:", "[::1]:")):
        parser.error("only a collector on a loopback address may be attacked")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.nice(options.nice)
    asyncio.run(_run(options))
    print(json.dumps({"attack": options.attack, **said}), flush=True)


if __name__ == "__main__":
    main()
