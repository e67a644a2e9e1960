"""The door for machines without a certificate: a server of its own that knows two calls.

Nobody who comes here has shown anything of value, so little is allowed: few connections, each for a few
seconds, small messages, and no more than one call at a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from typing import NoReturn

import grpc
import structlog
from grpc import aio

from collector.core.peer import address_of
from collector.identity.attempts import Attempts
from collector.identity.desk import Desk, EnrolmentRefused
from collector.identity.visits import Visits
from collector.store.clerk import Busy
from collector.store.errors import StoreError
from fleetpulse.convert import WireError
from fleetpulse.enrolment import EnrolContext, Enrolled, EnrolRequest, serve_enrolment

# A connection is closed within 10 s: gRPC adds up to a tenth to its age, and the grace follows.
_HANDSHAKE = 5.0  # seconds for TLS and HTTP/2 to begin
_AGE = 7.0  # seconds after which a connection takes no more calls
_KEEPALIVE = 5.0  # seconds without a sign of the peer until it is asked for one
_UNREAD = 2.0  # seconds that it may leave unanswered what it is sent
_GRACE = 1.0  # seconds more for the call that is under way
_CONNECTIONS = 256
_SLOW = 0.8  # seconds that who asks too often waits for each answer; less than the grace
_PATIENCE = 3.0  # seconds that an attempt waits for others of the same address to be decided
_MOMENT = 0.1  # seconds between two looks at them
_VISIT = 10.0  # seconds from asking for the CA certificates to the attempt that follows
_MESSAGE_SIZE = 32 << 10  # bytes
_METADATA_SIZE = 8 << 10  # bytes

_LEFT = EnrolmentRefused(
    "left",
    "CANCELLED",
    "asked for the CA certificates and left: wrong fingerprint, or a name that is not in the certificate",
)

log = structlog.get_logger()


class EnrolmentServicer:
    """Serves both calls. `counts` says how much of what has happened; see `ingest.refusals.COUNTED`.

    Who asks for the CA certificates and does not try to enroll within `visit` seconds has left.
    """

    def __init__(self, desk: Desk, attempts: Attempts, counts: Counter[str], visit: float = _VISIT):
        self._desk = desk
        self._attempts = attempts
        self._counts = counts
        self._visits = Visits(self._note_leaving, visit)
        self._tellings: set[asyncio.Task[None]] = set()  # few: tellings are paced

    async def get_trust(self, context: EnrolContext) -> bytes:
        """The CA bundle, which is public.

        Never refused, because a whole site may be behind one address; who asks too often waits for each
        answer, of which a connection has but one at a time.
        """
        address = address_of(context.peer())
        self._visits.begin(address)
        if not self._attempts.may_ask(address):
            await asyncio.sleep(_SLOW)
        return self._desk.trust.bundle

    async def enroll(self, request: EnrolRequest, context: EnrolContext) -> Enrolled:
        """Trade a token for a certificate, or say why not."""
        address = address_of(context.peer())
        self._visits.end(address)
        try:
            enrolled = await self._attempt(request, address)
        except EnrolmentRefused as error:
            await self._refuse(error, request.hostname, context)
        except Busy as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except StoreError as error:
            log.warning(
                "a machine could not be enrolled", host=request.hostname, peer=address, error=str(error)
            )
            text = "the collector cannot reach its database; try again later"
            await context.abort(grpc.StatusCode.UNAVAILABLE, text)
        except (asyncio.CancelledError, aio.BaseError):
            raise
        except Exception:
            # A defect of ours must not look like the machine's fault.
            log.exception("an enrolment met a defect", host=request.hostname, peer=address)
            await context.abort(grpc.StatusCode.INTERNAL, "a defect in the collector; its log says more")
        self._counts["enrolled"] += 1
        log.info("enrolled", host=enrolled.name, host_id=request.host_id, peer=address)
        return enrolled

    async def refuse_malformed(self, error: WireError, context: EnrolContext) -> None:
        """End a call whose request makes no sense."""
        refused = EnrolmentRefused("malformed", "INVALID_ARGUMENT", str(error))
        address = address_of(context.peer())
        self._visits.end(address)
        try:
            await self._begin(address)
        except EnrolmentRefused as impatient:
            refused = impatient
        else:
            self._attempts.end(address, refused=True)
        await self._refuse(refused, "", context)

    async def _attempt(self, request: EnrolRequest, address: str) -> Enrolled:
        """Who goes away before the answer counts as refused: the work may have been done."""
        await self._begin(address)
        refused = True
        try:
            enrolled = await self._desk.enroll(request, address)
            refused = False
        except StoreError:
            refused = False
            raise
        finally:
            self._attempts.end(address, refused=refused)
        return enrolled

    async def _begin(self, address: str) -> None:
        """Many good machines behind one address take turns, and are not refused for each other."""
        deadline = time.monotonic() + _PATIENCE
        while (wait := self._attempts.begin(address)) > 0:
            if not self._attempts.is_undecided(address) or time.monotonic() > deadline:
                text = f"too many refused attempts from {address}; try again in {math.ceil(wait)} s"
                raise EnrolmentRefused("limited", "RESOURCE_EXHAUSTED", text)
            await asyncio.sleep(_MOMENT)

    async def _refuse(self, refused: EnrolmentRefused, hostname: str, context: EnrolContext) -> NoReturn:
        address = address_of(context.peer())
        if refused.kind == "limited":
            self._counts["enrolment_limited"] += 1
        else:
            self._counts["enrolment_refused"] += 1
        untold = self._attempts.tell(refused.kind)
        if untold is not None:
            await self._tell(refused, hostname, address, untold)
        await context.abort(grpc.StatusCode[refused.status], str(refused))

    def _note_leaving(self, address: str) -> None:
        """Not an attempt that has to wait for others: nothing was tried."""
        self._counts["enrolment_refused"] += 1
        untold = self._attempts.tell(_LEFT.kind)
        if untold is not None:
            telling = asyncio.get_running_loop().create_task(self._tell(_LEFT, "", address, untold))
            self._tellings.add(telling)
            telling.add_done_callback(self._tellings.discard)

    async def _tell(self, refused: EnrolmentRefused, hostname: str, address: str, untold: int) -> None:
        text = f"{refused} (from {address})"
        if untold:
            text += f", and {untold} more like it before"
        log.warning("enrolment refused", kind=refused.kind, host=hostname, peer=address, error=text)
        try:
            await self._desk.note_refusal(hostname, text)
        except StoreError as error:
            log.warning("a refused enrolment is not in the events", error=str(error))


def create_enrolment_server(servicer: EnrolmentServicer) -> aio.Server:
    """A server that lets nobody stay; it listens nowhere yet."""
    server = aio.server(
        options=[
            # Two collectors on one port would share its connections at random.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", _MESSAGE_SIZE),
            ("grpc.max_metadata_size", _METADATA_SIZE),
            ("grpc.absolute_max_metadata_size", _METADATA_SIZE),
            ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE * 1000)),
            ("grpc.max_connection_age_ms", int(_AGE * 1000)),
            ("grpc.max_connection_age_grace_ms", int(_GRACE * 1000)),
            ("grpc.max_allowed_incoming_connections", _CONNECTIONS),
            # Whose last calls are not cleared away yet is refused one more: what keeps a flood of resets
            # from others can refuse a hurried client, too. Agents make one call on a connection.
            ("grpc.max_concurrent_streams", 1),
            # A connection whose peer does not read outlives its age, until TCP gives it up.
            ("grpc.keepalive_time_ms", int(_KEEPALIVE * 1000)),
            ("grpc.keepalive_timeout_ms", int(_UNREAD * 1000)),
            ("grpc.http2.bdp_probe", 0),
        ],
        maximum_concurrent_rpcs=_CONNECTIONS,
    )
    serve_enrolment(server, servicer.get_trust, servicer.enroll, servicer.refuse_malformed)
    return server
