"""The gRPC side: one `grpc.aio` server on its own loop. It admits and acks, and never blocks.

A stream carries one message at a time: the next is read when the last is committed and acked. So
the database's pace reaches the agents through flow control, and what a stream can hold here is one
message, whatever it sends.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from grpc import aio

from collector.core.status import HostRecord
from collector.ingest.door import Door
from collector.ingest.items import HostGone
from collector.ingest.sessions import Session, Sessions
from collector.store.errors import StoreError, StoreRefused
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import Hello, Layout
from fleetpulse.v1 import ingest_pb2 as pb
from fleetpulse.v1.ingest_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server

_THROTTLE = 2_000  # milliseconds that agents are asked to pause
# A stream that needs more than one of these is closed, and starts anew.
_LAYOUTS_PER_STREAM = 1_000
_SERIES_PER_STREAM = 10 * convert.MAX_SERIES  # and checks; up to 300 bytes each

log = structlog.get_logger()

_Context = aio.ServicerContext[pb.StreamRequest, pb.StreamResponse]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one stream may ask for. Sizes in bytes, times in seconds."""

    batch_reports: int
    message_size: int
    hello_timeout: float


class IngestServicer(IngestServiceServicer):
    """Serves the streams. `counts` says how much of what has happened."""

    def __init__(self, door: Door, sessions: Sessions, now: Callable[[], int], bounds: Bounds):
        self._door = door
        self._sessions = sessions
        self._now = now
        self._bounds = bounds
        self._layouts: weakref.WeakValueDictionary[bytes, Layout] = weakref.WeakValueDictionary()
        self.counts: Counter[str] = Counter()

    async def Stream(  # type: ignore[override]  # noqa: N802 - the name of the service definition
        self, request_iterator: AsyncIterator[pb.StreamRequest], context: _Context
    ) -> None:
        """One agent's stream, from Hello to the end."""
        del request_iterator  # context.read() costs half of what the iterator does
        session: Session | None = None
        try:
            session = await self._welcome(context)
            await self._serve(session, context)
        except WireError as error:
            self.counts["refused"] += 1
            log.warning("refused", host=_name(session), peer=_address(context), error=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except HostGone:
            await context.abort(grpc.StatusCode.ABORTED, "this host was removed; say Hello again")
        except StoreRefused as error:
            self.counts["refused"] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"cannot be stored: {error}")
        except StoreError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector cannot reach its database")
        except asyncio.CancelledError:
            if session is None or not session.was_replaced:
                raise
            await context.abort(grpc.StatusCode.ABORTED, "replaced by a newer stream of the same host")
        except aio.BaseError:  # our own abort, or the peer is gone
            raise
        except Exception:
            # A defect of ours. The agent keeps its reports, and tries again later.
            log.exception("a stream ended by a defect", host=_name(session), peer=_address(context))
            await context.abort(grpc.StatusCode.INTERNAL, "a defect in the collector; its log says more")
        finally:
            if session is not None:
                self._sessions.leave(session)

    async def _welcome(self, context: _Context) -> Session:
        await self._refuse_when_closing(context)
        try:
            async with asyncio.timeout(self._bounds.hello_timeout):
                request: Any = await context.read()
        except TimeoutError:
            self.counts["refused"] += 1
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello in time")
        if request is aio.EOF or request.WhichOneof("message") != "hello":
            raise WireError("a stream starts with Hello")
        hello = convert.decode_hello(request.hello)
        record = _record(hello, _address(context))
        registered = await self._door.register(record, hello.epoch, self._now())
        await self._refuse_when_closing(context)

        async def send_goodbye(reconnect_after: int) -> None:
            await context.write(convert.encode_goodbye(reconnect_after))

        task = asyncio.current_task()
        assert task is not None
        session = Session(record, hello.epoch, registered.host, send_goodbye, task)
        self._sessions.join(session)
        await context.write(
            convert.encode_welcome(
                registered.committed_seq, self._bounds.batch_reports, self._bounds.message_size
            )
        )
        return session

    async def _refuse_when_closing(self, context: _Context) -> None:
        if self._sessions.are_closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")

    async def _serve(self, session: Session, context: _Context) -> None:
        gate = self._door.gate
        while True:
            if gate.is_closed:
                await context.write(convert.encode_throttle(_THROTTLE))
                self.counts["throttled"] += 1
                await gate.wait_open()
            if session.goodbye is not None:
                await session.send_goodbye(session.goodbye)
            session.is_idle = True
            request: Any = await context.read()
            session.is_idle = False
            if request is aio.EOF:
                return
            await self._take(session, request, context)

    async def _take(self, session: Session, request: Any, context: _Context) -> None:
        kind = request.WhichOneof("message")
        if kind == "reports":
            reports = convert.decode_batch(request.reports, session.layouts)
            if not reports:
                raise WireError("a batch without reports")
            if len(reports) > self._bounds.batch_reports:
                raise WireError(
                    f"{len(reports)} reports in one batch, more than {self._bounds.batch_reports}"
                )
            committed = await self._door.submit(
                session.host, session.record, session.epoch, reports, self._now()
            )
            self.counts["reports"] += len(reports)
            await context.write(convert.encode_ack(committed))
        elif kind == "layout":
            self._announce(session, request.layout)
        elif kind == "facts":
            facts = convert.decode_facts(request.facts)
            await self._door.submit(session.host, session.record, session.epoch, (), self._now(), facts)
        elif kind == "hello":
            raise WireError("a second Hello on one stream")
        # Anything else is of a newer protocol, and not meant for us.

    def _announce(self, session: Session, message: pb.Layout) -> None:
        if len(session.layouts) >= _LAYOUTS_PER_STREAM:
            raise WireError(f"more than {_LAYOUTS_PER_STREAM} layouts on one stream")
        # Machines of one kind have one layout: it is read and kept once for all of them. Its id is
        # the hash of its content, so whoever sends a known id means the known layout.
        layout = self._layouts.get(message.id)
        if layout is None:
            layout = convert.decode_layout(message)
            self._layouts[layout.id] = layout
        session.layouts[layout.id] = layout
        if (
            sum(len(known.checks) + known.series_count for known in session.layouts.values())
            > _SERIES_PER_STREAM
        ):
            raise WireError(f"layouts of more than {_SERIES_PER_STREAM} checks and series on one stream")


def create_server(servicer: IngestServicer, *, connections: int, message_size: int) -> aio.Server:
    """A server that serves thousands of agents that all connect at once, and notices dead ones."""
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", message_size),
            # Two collectors on one port would share its connections at random.
            ("grpc.so_reuseport", 0),
            # The default of about 1,000 cancels streams when a fleet reconnects at once.
            ("grpc.server.max_pending_requests", connections),
            ("grpc.server.max_pending_requests_hard_limit", connections),
            # Reports are small and wait for their acks: nothing is gained by measuring the bandwidth,
            # which costs a ping with every few messages. Windows stay at 64 kB a stream.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ],
        maximum_concurrent_rpcs=connections,
    )
    add_IngestServiceServicer_to_server(servicer, server)
    return server


def _record(hello: Hello, address: str) -> HostRecord:
    return HostRecord(
        hello.host_id,
        hello.hostname,
        hello.machine_id,
        hello.boot_id,
        hello.agent_version,
        address,
        hello.interval,
        hello.ttl,
        hello.groups,
    )


def _address(context: _Context) -> str:
    """The peer's address without its port: "ipv6:%5B::1%5D:4711" is "::1"."""
    kind, _, rest = unquote(context.peer()).partition(":")
    if kind in ("ipv4", "ipv6"):
        return rest.rpartition(":")[0].strip("[]")
    return kind


def _name(session: Session | None) -> str:
    return session.record.hostname if session else "unknown"
