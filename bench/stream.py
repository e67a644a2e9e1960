"""A simulated host and its stream: Hello, Welcome, layout, then one report in flight, to a collector or an echo."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc

from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, Hello, HostId, Layout, Measurement, Report
from fleetpulse.v1 import ingest_pb2 as pb

# 12 checks and 48 values, of which 24 are watched by the built-in rules.
_WATCHED = ("system.filesystem.utilization", "system.filesystem.inodes.utilization")
LAYOUT = Layout(
    tuple(
        CheckLayout(
            CheckKey("filesystem", f"/mnt/{number}"),
            (
                Measurement(_WATCHED[0], "1"),
                Measurement(_WATCHED[1], "1"),
                Measurement("system.filesystem.usage", "By"),
                Measurement("system.filesystem.limit", "By"),
            ),
        )
        for number in range(12)
    )
)
_METHOD = "/fleetpulse.v1.IngestService/Stream"


class Host:
    """One simulated host and what it measures. `change` is the share of its reports that change a state."""

    def __init__(self, number: int, seed: int, change: float):
        self.random = random.Random(f"{seed}/{number}")
        self.hello = Hello(
            HostId(str(uuid.uuid5(uuid.NAMESPACE_DNS, f"bench-{number}"))),
            f"bench-{number}",
            "machine",
            "boot",
            # New in every run: what an earlier run sent must not make this one's reports duplicates.
            random.SystemRandom().randrange(1, 2**63),
            "bench",
            15_000,
            45_000,
        )
        self.change = change
        self.seq = 0
        self.changes = 0
        self.full = False

    def messages(self) -> Iterator[pb.StreamRequest]:
        """One report a message, for ever. A changed one moves a disk over or under its threshold."""
        values = [self.random.uniform(0.1, 0.6) for _ in range(LAYOUT.series_count)]
        while True:
            self.seq += 1
            values[self.random.randrange(2, LAYOUT.series_count)] = self.random.uniform(0.1, 0.6)
            if self.random.random() < self.change:
                self.full = not self.full
                self.changes += 1
            values[0] = 0.9 if self.full else 0.3
            report = Report(self.seq, int(time.time() * 1000), LAYOUT, tuple(values))
            yield convert.encode_batch([convert.encode_report(report)])


def connection(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """One that no other stream of this process shares; in plaintext without credentials."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


class Stream:
    """One host's. Made in a running loop. Raises SystemExit when the other end closes it."""

    def __init__(self, channel: grpc.aio.Channel, host: Host, *, echo: bool = False):
        self.host = host
        self._channel = channel
        self._echo = echo
        self._messages = host.messages()
        self._call: Any = None

    async def open(self) -> None:
        """Begin, say Hello, and after the Welcome announce the layout, which only an echo answers."""
        self._call = self._channel.stream_stream(
            _METHOD,
            request_serializer=pb.StreamRequest.SerializeToString,
            response_deserializer=None if self._echo else pb.StreamResponse.FromString,
        )()
        await self._call.write(convert.encode_hello(self.host.hello))
        await self._answer("welcome")
        await self._call.write(convert.encode_layout(LAYOUT))
        if self._echo:
            await self._answer("layout")

    async def report(self) -> None:
        """Measure and send a report, and wait for its Ack, or its echo."""
        await self._call.write(next(self._messages))
        await self._answer("ack")

    async def close(self) -> None:
        await self._call.done_writing()
        await self._channel.close()

    async def _answer(self, kind: str) -> None:
        """Read up to an answer of this kind: who is slowed down is told so before. An echo's next one will do."""
        while (said := await self._call.read()) is not grpc.aio.EOF:
            if self._echo or said.WhichOneof("message") == kind:
                return
        raise SystemExit(f"the stream of {self.host.hello.hostname} ended: {await self._call.details()}")
