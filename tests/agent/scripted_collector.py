"""A collector that a test can tell what to do; it speaks the real wire on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from fleetpulse import convert
from fleetpulse.model import Facts, Hello, Layout, Report
from fleetpulse.v1 import ingest_pb2 as pb
from fleetpulse.v1.ingest_pb2_grpc import add_IngestServiceServicer_to_server
from tests.ports import free_ports


@dataclass
class Script:
    """What the collector does, and what it saw."""

    acks: bool = True
    welcomes: bool = True
    committed_seq: int | None = None  # of Welcome; None: the truth
    max_batch_reports: int = 100
    max_message_bytes: int = 1 << 20
    refuse_report: Callable[[Report], str] | None = None
    refuse_facts: bool = False
    refuse_hello: tuple[grpc.StatusCode, str] | None = None
    before_batch: Callable[[Any], Any] | None = None
    certify: Callable[[str, bytes], bytes] | None = None  # (host_id, CSR); None: no answer at all

    hellos: list[Hello] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)  # epoch: seq
    reports: dict[tuple[int, int], Report] = field(default_factory=dict)  # each taken once
    csrs: list[bytes] = field(default_factory=list)
    shown: list[bytes] = field(default_factory=list)  # each stream's client certificate, PEM
    contexts: list[Any] = field(default_factory=list)
    open_streams: int = 0
    welcomed: int = 0
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def Stream(self, _: object, context: Any) -> None:  # noqa: N802 - gRPC's name
        self.contexts.append(context)
        self.shown.extend(context.auth_context().get("x509_pem_cert", ()))
        self.open_streams += 1
        try:
            await self._serve(context)
        finally:
            self.open_streams -= 1

    async def _serve(self, context: Any) -> None:
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        hello = convert.decode_hello(first.hello)
        self.hellos.append(hello)
        if self.refuse_hello:
            await context.abort(*self.refuse_hello)
        if self.welcomes:
            seq = self.committed.get(hello.epoch, 0) if self.committed_seq is None else self.committed_seq
            self.committed_seq = None
            welcome = convert.encode_welcome(seq, self.max_batch_reports, self.max_message_bytes)
            await self._write(context, welcome)
            self.welcomed += 1
        layouts: dict[bytes, Layout] = {}
        while (message := await context.read()) is not grpc.aio.EOF:
            match message.WhichOneof("message"):
                case "layout":
                    layout = convert.decode_layout(message.layout)
                    layouts[layout.id] = layout
                    self.layouts.append(layout)
                case "facts":
                    if self.refuse_facts:
                        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad facts")
                    self.facts.append(convert.decode_facts(message.facts))
                case "certificate_request":
                    csr = convert.decode_certificate_request(message.certificate_request)
                    self.csrs.append(csr)
                    if self.certify:
                        await self._write(
                            context, convert.encode_certificate(self.certify(hello.host_id, csr))
                        )
                case "reports":
                    await self._take(hello, convert.decode_batch(message.reports, layouts), context)

    async def _take(self, hello: Hello, reports: list[Report], context: Any) -> None:
        self.batches.append([report.seq for report in reports])
        for report in reports:
            if self.refuse_report and (why := self.refuse_report(report)):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        if self.before_batch:
            await self.before_batch(context)
        mark = self.committed.get(hello.epoch, 0)
        for report in reports:
            if report.seq > mark:
                assert (hello.epoch, report.seq) not in self.reports
                self.reports[hello.epoch, report.seq] = report
                mark = report.seq
        self.committed[hello.epoch] = mark
        if self.acks:
            await self._write(context, convert.encode_ack(mark))

    def seqs(self) -> list[int]:
        return [seq for _, seq in self.reports]

    async def say(self, message: pb.StreamResponse) -> None:
        """Send this on the newest stream, once it is welcomed if it is to be."""
        await until(lambda: not self.welcomes or self.welcomed == len(self.hellos))
        await self._write(self.contexts[-1], message)

    async def _write(self, context: Any, message: pb.StreamResponse) -> None:
        async with self._writing:  # gRPC takes one at a time
            await context.write(message)


@asynccontextmanager
async def serving(
    script: Script, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    """Serve `script` on loopback, in plaintext or with TLS; yields the port, on which it may be served again."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_IngestServiceServicer_to_server(script, server)  # type: ignore[arg-type]
    address = f"127.0.0.1:{port or free_ports()[0]}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition that something else makes true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)
