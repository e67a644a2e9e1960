"""The gRPC side: one `grpc.aio` server on its own loop. It admits and acks, and never blocks.

A stream carries one message at a time: the next is read when the last is committed and acked, and when
it is its host's turn again. So the database's pace reaches the agents through flow control, and what a
stream can hold here is one message, whatever it sends.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Sequence

import grpc
import structlog
from grpc import aio

from collector.core.pacer import Pacer
from collector.core.peer import address_of
from collector.ingest.admission import Admission
from collector.ingest.bounds import Bounds
from collector.ingest.calls import OpenCalls
from collector.ingest.conversation import Conversation, Surroundings
from collector.ingest.credentials import Credentials
from collector.ingest.door import Door
from collector.ingest.endings import ENDED, Ending, end_call, ending_by
from collector.ingest.refusals import Refusals
from collector.ingest.sessions import Session, Sessions
from collector.ingest.trust import TrustTeller
from fleetpulse import convert
from fleetpulse.rpc import ServedStream, serve_streams

_REPORTS_BURST = 10.0  # seconds of a host's pace that it may use up at once
_RENEWAL_SECONDS = 2.0  # of a host's pace that a new certificate takes up
_TARPIT = 0.5  # seconds that somebody waits for a refusal who has shown nothing of value
_TARPIT_SIZE = 1_000  # streams that wait so
_STREAMS_PER_CONNECTION = 16  # an agent needs one; a few for health checks
_SPARE_CONNECTIONS = 1_000  # beyond one for each stream

log = structlog.get_logger()


class IngestServicer:
    """Serves the streams. `counts` says how much of what has happened; see `refusals.COUNTED`.

    `calls` are those that are open, by their certificate.
    """

    def __init__(
        self,
        door: Door,
        sessions: Sessions,
        now: Callable[[], int],
        bounds: Bounds,
        *,
        name: str,
        credentials: Credentials | None = None,
    ):
        self._sessions = sessions
        self.bounds = bounds
        self.calls = OpenCalls()
        self._refusals = Refusals()
        self.counts: Counter[str] = self._refusals.counts
        sessions.counts = self.counts
        self._admission = Admission(door, sessions, now, bounds, name, self.counts)
        self._trust = None if credentials is None else TrustTeller(sessions, credentials)
        rate = bounds.reports_per_second
        self._around = Surroundings(
            door,
            now,
            bounds.batch_reports,
            Pacer(rate, _REPORTS_BURST * rate),
            self._refusals,
            weakref.WeakValueDictionary(),
            credentials,
            _RENEWAL_SECONDS * rate,
        )
        self._tarpitted = 0

    def tell_trust(self) -> None:
        """Tell every agent whom to trust, because that has changed."""
        if self._trust is not None:
            self._trust.tell_all()

    async def stream(self, _: object, context: ServedStream) -> None:
        """One agent's stream, from Hello to the end."""
        session: Session | None = None
        try:
            with self.calls.counted(context) as certificate:
                session, committed = await self._admission.admit(context, certificate)
                await self._welcome(session, committed)
                await Conversation(session, context, self._around).run()
        except asyncio.CancelledError:
            if session is None or not session.ended:
                self.counts["broken"] += 1
                raise
            ending = ENDED[session.ended]
        except aio.BaseError:  # the peer is gone, or gRPC does not let it go on
            self.counts["broken"] += 1
            raise
        except Exception as error:  # noqa: BLE001 - whatever happens on one stream, the others go on
            ending = self._ending_by(error, _name(session), address_of(context.peer()))
        else:
            return
        finally:
            if session is not None:
                self._sessions.leave(session)
        # The error is gone by now, and with it the message that it was raised for: refusing may take long.
        await self._end(context, session, ending)

    async def _welcome(self, session: Session, committed: int) -> None:
        bounds = self.bounds
        await session.send(convert.encode_welcome(committed, bounds.batch_reports, bounds.message_size))
        if self._trust is not None:
            await self._trust.greet(session)
        self.counts["streams"] += 1

    def _ending_by(self, error: Exception, host: str, peer: str) -> Ending:
        ending = ending_by(error)
        if ending is not None:
            return ending
        # A defect of ours. The agent keeps its reports, and tries again later.
        log.error("a stream ended by a defect", host=host, peer=peer, exc_info=error)
        return Ending(grpc.StatusCode.INTERNAL, "a defect in the collector; its log says more")

    async def _end(self, context: ServedStream, session: Session | None, ending: Ending) -> None:
        if ending.kind:
            host = ending.host or _name(session)
            self._refusals.tell(ending.kind, host=host, peer=address_of(context.peer()), error=ending.text)
        elif session is not None and session.ended:
            self.counts[session.ended] += 1
        if ending.kind and session is None and self._tarpitted < _TARPIT_SIZE:
            self._tarpitted += 1
            try:
                await asyncio.sleep(_TARPIT)
            finally:
                self._tarpitted -= 1
        await end_call(context, ending.code, ending.text)


def create_server(servicer: IngestServicer, interceptors: Sequence[aio.ServerInterceptor] = ()) -> aio.Server:
    """A server that serves thousands of agents that all connect at once, and notices dead ones."""
    bounds = servicer.bounds
    connections = bounds.connections
    server = aio.server(
        interceptors=interceptors,
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
            # What we say is short. TLS keeps a buffer of this size for each connection, 16 kB by default.
            ("grpc.tsi.max_frame_size", 1024),
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


def _name(session: Session | None) -> str:
    return session.record.hostname if session else "unknown"
