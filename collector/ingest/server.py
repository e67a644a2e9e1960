"""The gRPC side: one `grpc.aio` server on its own loop. It admits and acks, and never blocks.

A stream carries one message at a time: the next is read when the last is committed and acked, and when
it is its host's turn again. So the database's pace reaches the agents through flow control, and what a
stream can hold here is one message, whatever it sends.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from grpc import aio

from collector.core.status import HostRecord
from collector.ingest.conversation import Conversation, Surroundings, TooManyLayouts
from collector.ingest.door import Door
from collector.ingest.items import HelloNeeded
from collector.ingest.pacer import Pacer
from collector.ingest.refusals import Refusals
from collector.ingest.sessions import Session, Sessions
from collector.store.errors import StoreError, StoreRefused
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import Hello
from fleetpulse.rpc import ServedStream, serve_streams

_REPORTS_BURST = 10.0  # seconds of a host's pace that it may use up at once
_HELLOS_BURST = 120.0
_TARPIT = 0.5  # seconds that somebody waits for a refusal who has shown nothing of value
_TARPIT_SIZE = 1_000  # streams that wait so
_ABORT_PATIENCE = 2.0  # seconds that we wait for an agent to take a refusal
_STREAMS_PER_CONNECTION = 16  # an agent needs one; a few for health checks
_SPARE_CONNECTIONS = 1_000  # beyond one for each stream

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ending:
    """Why we end a stream, for its agent. `kind` is what is counted; empty: it is nobody's fault."""

    code: grpc.StatusCode
    text: str
    kind: str = ""
    host: str = ""


class Refused(Exception):
    """A stream is not welcome."""

    def __init__(self, code: grpc.StatusCode, text: str, kind: str = "", host: str = ""):
        super().__init__(text)
        self.ending = Ending(code, text, kind, host)


_ENDED = {
    "replaced": Ending(grpc.StatusCode.ABORTED, "replaced by a newer stream of the same host"),
    "unread": Ending(grpc.StatusCode.ABORTED, "does not read what it is told", "unread"),
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What agents may ask for. Sizes in bytes, times in seconds; `..._per_...` are of one host."""

    batch_reports: int
    message_size: int
    hello_timeout: float
    connections: int = 10_000
    reports_per_second: float = 100.0
    hellos_per_minute: float = 12.0


class IngestServicer:
    """Serves the streams. `counts` says how much of what has happened; see `refusals.COUNTED`."""

    def __init__(self, door: Door, sessions: Sessions, now: Callable[[], int], bounds: Bounds):
        self._door = door
        self._sessions = sessions
        self._now = now
        self.bounds = bounds
        self._refusals = Refusals()
        self.counts: Counter[str] = self._refusals.counts
        sessions.counts = self.counts
        rate, hellos = bounds.reports_per_second, bounds.hellos_per_minute / 60
        self._hello_pacer = Pacer(hellos, max(1.0, _HELLOS_BURST * hellos))
        self._around = Surroundings(
            door,
            now,
            bounds.batch_reports,
            Pacer(rate, _REPORTS_BURST * rate),
            self.counts,
            weakref.WeakValueDictionary(),
        )
        self._tarpitted = 0

    async def stream(self, _: object, context: ServedStream) -> None:
        """One agent's stream, from Hello to the end."""
        session: Session | None = None
        try:
            session, committed = await self._admit(context)
            bounds = self.bounds
            await session.send(convert.encode_welcome(committed, bounds.batch_reports, bounds.message_size))
            self.counts["streams"] += 1
            await Conversation(session, context, self._around).run()
        except asyncio.CancelledError:
            if session is None or not session.ended:
                self.counts["broken"] += 1
                raise
            ending = _ENDED[session.ended]
        except aio.BaseError:  # the peer is gone, or gRPC does not let it go on
            self.counts["broken"] += 1
            raise
        except Exception as error:  # noqa: BLE001 - whatever happens on one stream, the others go on
            ending = self._ending_by(error, _name(session), _address(context))
        else:
            return
        finally:
            if session is not None:
                self._sessions.leave(session)
        # The error is gone by now, and with it the message that it was raised for: refusing may take long.
        await self._end(context, session, ending)

    def _ending_by(self, error: Exception, host: str, peer: str) -> Ending:
        match error:
            case Refused():
                return error.ending
            case WireError():
                return Ending(grpc.StatusCode.INVALID_ARGUMENT, str(error), "malformed")
            case HelloNeeded():
                return Ending(grpc.StatusCode.ABORTED, str(error))
            case TooManyLayouts():
                # Not the reports' fault: an agent sends them one by one now, and drops none.
                return Ending(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            case StoreRefused():
                text = f"cannot be stored: {error}"
                return Ending(grpc.StatusCode.INVALID_ARGUMENT, text, "unstorable")
            case StoreError():
                return Ending(grpc.StatusCode.UNAVAILABLE, "the collector cannot reach its database")
        # A defect of ours. The agent keeps its reports, and tries again later.
        log.error("a stream ended by a defect", host=host, peer=peer, exc_info=error)
        return Ending(grpc.StatusCode.INTERNAL, "a defect in the collector; its log says more")

    async def _end(self, context: ServedStream, session: Session | None, ending: Ending) -> None:
        if ending.kind:
            host = ending.host or _name(session)
            self._refusals.tell(ending.kind, host=host, peer=_address(context), error=ending.text)
        elif session is not None and session.ended:
            self.counts[session.ended] += 1
        if ending.kind and session is None and self._tarpitted < _TARPIT_SIZE:
            self._tarpitted += 1
            try:
                await asyncio.sleep(_TARPIT)
            finally:
                self._tarpitted -= 1
        # An agent that does not read finds the status when it does; nobody waits for that here.
        with suppress(TimeoutError):
            async with asyncio.timeout(_ABORT_PATIENCE):
                await context.abort(ending.code, ending.text)
        raise asyncio.CancelledError

    async def _admit(self, context: ServedStream) -> tuple[Session, int]:
        """The session of a stream that said a good Hello, and the last committed number of its epoch."""
        self._refuse_when_closing()
        hello = await self._hello(context)
        if not self._hello_pacer.try_spend(hello.host_id, 1, time.monotonic()):
            text = "this host connects too often; do two machines share its identity?"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, "too_many_hellos", hello.hostname)
        record = _record(hello, _address(context))
        registered = await self._door.register(record, hello.epoch, self._now())
        self._refuse_when_closing()
        task = asyncio.current_task()
        assert task is not None
        session = Session(record, hello.epoch, registered.host, context.write, task)
        self._sessions.join(session)
        return session, registered.committed_seq

    async def _hello(self, context: ServedStream) -> Hello:
        try:
            async with asyncio.timeout(self.bounds.hello_timeout):
                data: Any = await context.read()
        except TimeoutError:
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello in time", "no_hello") from None
        if data is aio.EOF:
            raise WireError("a stream starts with Hello")
        request = convert.decode_request(data)
        if request.WhichOneof("message") != "hello":
            raise WireError("a stream starts with Hello")
        return convert.decode_hello(request.hello)

    def _refuse_when_closing(self) -> None:
        if self._sessions.are_closing:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")


def create_server(servicer: IngestServicer) -> aio.Server:
    """A server that serves thousands of agents that all connect at once, and notices dead ones."""
    bounds = servicer.bounds
    connections = bounds.connections
    server = aio.server(
        options=[
            ("grpc.max_receive_message_length", bounds.message_size),
            # Two collectors on one port would share its connections at random.
            ("grpc.so_reuseport", 0),
            # The default of about 1,000 cancels streams when a fleet reconnects at once.
            ("grpc.server.max_pending_requests", connections),
            ("grpc.server.max_pending_requests_hard_limit", connections),
            # Who connects and says nothing, or trickles, is cut off (HTTP/2 preface and settings).
            ("grpc.server_handshake_timeout_ms", int(bounds.hello_timeout * 1000)),
            ("grpc.max_allowed_incoming_connections", connections + _SPARE_CONNECTIONS),
            ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
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
    serve_streams(server, servicer.stream)
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


def _address(context: ServedStream) -> str:
    """The peer's address without its port: "ipv6:%5B::1%5D:4711" is "::1"."""
    kind, _, rest = unquote(context.peer()).partition(":")
    if kind in ("ipv4", "ipv6"):
        return rest.rpartition(":")[0].strip("[]")
    return kind


def _name(session: Session | None) -> str:
    return session.record.hostname if session else "unknown"
