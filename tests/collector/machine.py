"""A machine that speaks to a collector word by word, as whoever it says it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeVar

import grpc

from fleetpulse import convert
from fleetpulse.convert import Ack, Response, Throttle, Welcome
from fleetpulse.model import CheckKey, CheckLayout, Hello, HostId, Layout, Measurement, Report
from fleetpulse.rpc import CallOverError, open_stream, read_response, write_request

LAYOUT = Layout((CheckLayout(CheckKey("c"), (Measurement("m", "1"),)),))
INTERVAL = 2_000  # milliseconds: 1.5 of them are what a newcomer waits at most
_PATIENCE = 30.0

_Response = TypeVar("_Response", bound=Response)


def hello(**changes: object) -> Hello:
    """What a machine says of itself: a new one, unless told otherwise."""
    fields: dict[str, object] = {
        "host_id": HostId(str(uuid.uuid4())),
        "hostname": "web-1",
        "machine_id": uuid.uuid4().hex,
        "boot_id": uuid.uuid4().hex,
        "epoch": 7,
        "agent_version": "0.1.0",
        "interval": INTERVAL,
        "ttl": 10 * INTERVAL,
        "instance": uuid.uuid4().hex,
        "hardware_id": uuid.uuid4().hex,
    }
    return Hello(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Refusal:
    """How a stream ended that the collector did not want."""

    code: grpc.StatusCode
    text: str


class Machine:
    """One open stream. It says only what it is told to say."""

    def __init__(self, channel: grpc.aio.Channel, said: Hello):
        self.call = open_stream(channel)
        self.hello = said
        self.throttled = 0
        """How often it was asked to wait."""
        self._seqs = itertools.count(1)

    async def greet(self) -> Welcome | Refusal:
        """Say Hello; the answer, whatever it takes to come."""
        await self._write(convert.encode_hello(self.hello))
        answer = await self.expect(Welcome)
        if isinstance(answer, Welcome):
            self._seqs = itertools.count(answer.committed_seq + 1)
            await self._write(convert.encode_layout(LAYOUT))
        return answer

    async def report(self) -> Ack | Refusal:
        """Report once, and wait for the ack."""
        report = Report(next(self._seqs), 1, LAYOUT, (0.5,))
        await self._write(convert.encode_batch([convert.encode_report(report)]))
        return await self.expect(Ack)

    async def keep_reporting(self) -> Refusal:
        """Report several times in an interval until the collector ends that."""
        while True:
            answer = await self.report()
            if isinstance(answer, Refusal):
                return answer
            await asyncio.sleep(INTERVAL / 1000 / 5)

    async def ask_renewal(self, csr: bytes) -> convert.Certificate | Refusal:
        """Ask for a new certificate."""
        await self._write(convert.encode_certificate_request(csr))
        return await self.expect(convert.Certificate)

    async def expect(self, kind: type[_Response]) -> _Response | Refusal:
        """The next message of that kind, or the end."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while (message := await read_response(self.call)) is not None:
                    said = convert.decode_response(message)
                    self.throttled += isinstance(said, Throttle)
                    if isinstance(said, kind):
                        return said
        except grpc.aio.AioRpcError as error:
            return Refusal(error.code(), error.details() or "")
        return Refusal(grpc.StatusCode.OK, "closed")

    def leave(self) -> None:
        """Break the stream off."""
        self.call.cancel()

    async def _write(self, message: convert.StreamRequest) -> None:
        with contextlib.suppress(CallOverError):  # reading tells why
            await write_request(self.call, message)


@contextlib.asynccontextmanager
async def machine(
    address: str, said: Hello, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Machine]:
    """A machine with a connection of its own."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(address, options=options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=options)
    )
    async with channel:
        one = Machine(channel, said)
        try:
            yield one
        finally:
            one.leave()
