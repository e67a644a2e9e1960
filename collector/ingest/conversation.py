"""What is said on one stream after Welcome: one message at a time, each at its host's pace."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpc import aio

from collector.core.identity import Bearer, RenewalRefused
from collector.core.pacer import Pacer
from collector.ingest.credentials import Credentials
from collector.ingest.door import Door
from collector.ingest.endings import TooManyLayouts
from collector.ingest.items import StreamFull
from collector.ingest.refusals import Refusals
from collector.ingest.sessions import Session
from collector.store.errors import StoreError
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import Layout, Report
from fleetpulse.rpc import ServedStream
from fleetpulse.v1 import ingest_pb2 as pb

_THROTTLE = 2_000  # milliseconds that agents are asked to pause
# Bytes of layouts. An agent never announces one twice on a stream, so none can be forgotten before its end.
_MANY_LAYOUTS = 16 << 20  # with more than this, a stream ends after its next Ack, and starts anew
_MOST_LAYOUTS = 64 << 20  # between two Acks; the series of a batch of a mebibyte take up less

# A report of more than this takes up more of its host's pace than one: it costs as much as several.
CHECKS_PER_REPORT = 50
SERIES_PER_REPORT = 500
_LARGE_LAYOUT = 64 << 10  # bytes; decoding more than that takes milliseconds
# Shorter pauses are put together, so that a host at its limit is not sent a Throttle for each message.
_LEAST_PAUSE = 0.25  # seconds


@dataclass(slots=True)
class Surroundings:
    """What all conversations have in common. `now` is in milliseconds, `pacer` knows hosts by their id."""

    door: Door
    now: Callable[[], int]
    batch_reports: int
    pacer: Pacer
    refusals: Refusals
    layouts: weakref.WeakValueDictionary[bytes, Layout]
    credentials: Credentials | None
    """None: hosts get no certificates here."""
    renewal_cost: float
    """How much of a host's pace a new certificate takes up, in reports."""

    @property
    def counts(self) -> Counter[str]:
        """How much of what has happened; see `refusals.COUNTED`."""
        return self.refusals.counts


class Conversation:
    """One agent's messages, until it has no more."""

    def __init__(self, session: Session, context: ServedStream, around: Surroundings):
        self._session = session
        self._context = context
        self._around = around
        self._is_full = False

    async def run(self) -> None:
        """Until the agent closes the stream.

        Raises WireError, StoreError, HelloNeeded, TooManyLayouts, and whatever gRPC raises for a broken stream.
        """
        session, around = self._session, self._around
        host_id = session.record.host_id
        read = self._context.read
        gate = around.door.gate
        wait = 0.0
        while True:
            if session.goodbye is not None:
                await session.send(convert.encode_goodbye(session.goodbye))
            session.is_idle = True
            if wait > _LEAST_PAUSE:
                around.counts["paced"] += 1
                # Flow control holds back what the agent goes on sending.
                await session.send(convert.encode_throttle(int(wait * 1000) + 1))
                await asyncio.sleep(wait)
            if gate.is_closed:
                around.counts["throttled"] += 1
                await session.send(convert.encode_throttle(_THROTTLE))
                session.held_since = time.monotonic()
                await gate.wait_open()
                session.held_since = 0.0
            data: Any = await read()
            session.is_idle = False
            if data is aio.EOF:
                await asyncio.sleep(0)  # a stream that broke off looks the same, and is cancelled right after
                return
            began = session.held_since = time.monotonic()
            cost = await self._take(data)
            del data
            session.held_since = 0.0
            wait = around.pacer.spend(host_id, cost, began)
            if self._is_full:
                around.counts["full"] += 1
                raise StreamFull

    async def _take(self, data: bytes) -> float:
        """Act on one message; what it cost, in reports."""
        session, around = self._session, self._around
        request = convert.decode_request(data)
        kind = request.WhichOneof("message")
        if kind == "reports":
            received_at = around.now()
            count = convert.batch_size(request.reports, around.batch_reports)
            most = self._most
            weight = self._weight(min(count, most))
            gate = around.door.gate
            if not gate.try_enter(weight):
                # Decoded they take up more memory: those that wait are kept as they came.
                del request
                await gate.enter(weight)
                request = convert.decode_request(data)
            reports = self._decoded(request, weight)
            del request  # the message takes up as much again, and its commit may be long in coming
            if count <= most:
                committed = await around.door.submit(
                    session.host,
                    session.record,
                    session.epoch,
                    reports,
                    received_at,
                    weight,
                    is_admitted=True,
                )
                around.counts["reports"] += count
            else:
                committed = await self._submit_in_parts(reports, received_at, most)
            del reports  # the agent may be slow to read that they are committed
            await session.send(convert.encode_ack(committed))
            # Not before something was acked: then every stream gets its agent further.
            self._is_full = session.layouts_size > _MANY_LAYOUTS and len(session.layouts) > 1
            return int(count * session.report_cost)
        if kind == "layout":
            return await self._announce(request.layout, len(data))
        if kind == "facts":
            facts = convert.decode_facts(request.facts)
            await around.door.submit(
                session.host, session.record, session.epoch, (), around.now(), facts=facts
            )
        elif kind == "certificate_request":
            await self._renew(convert.decode_certificate_request(request.certificate_request))
            return around.renewal_cost
        elif kind == "hello":
            raise WireError("a second Hello on one stream")
        # Anything else is of a newer protocol, and not meant for us.
        return 1

    def _decoded(self, request: pb.StreamRequest, admitted: int) -> list[Report]:
        """A message's reports. If it makes no sense, what the gate has counted of it leaves again."""
        try:
            return convert.decode_batch(request.reports, self._session.layouts)
        except BaseException:
            self._around.door.gate.leave(admitted)
            raise

    @property
    def _most(self) -> int:
        """How many reports are submitted at once; of large ones fewer, so that other hosts have their turn."""
        return max(1, int(self._around.batch_reports / self._session.report_cost))

    def _weight(self, reports: int) -> int:
        """How much of a queue or batch so many reports take up."""
        return max(reports, int(reports * self._session.report_cost))

    async def _submit_in_parts(self, reports: Sequence[Report], received_at: int, most: int) -> int:
        """Commit a message's reports, `most` at once, of which the first part is admitted."""
        session, around = self._session, self._around
        committed = 0
        for start in range(0, len(reports), most):
            part = reports[start : start + most]
            committed = await around.door.submit(
                session.host,
                session.record,
                session.epoch,
                part,
                received_at,
                self._weight(len(part)),
                is_admitted=start == 0,
            )
            around.counts["reports"] += len(part)
        return committed

    async def _renew(self, csr: bytes) -> None:
        """Answer with a new certificate, or an empty one: the stream goes on with the old one until it ends."""
        session, around = self._session, self._around
        record = session.record
        if not session.fingerprint:
            raise WireError("a certificate request on a stream without TLS")
        chain, why_not = b"", ""
        if around.credentials is None:
            why_not = "this collector signs no certificates"
        else:
            try:
                bearer = Bearer(session.host, record.host_id, record.hostname, session.fingerprint)
                chain = await around.credentials.renew(bearer, csr)
            except (RenewalRefused, StoreError) as error:
                why_not = str(error)
        if why_not:
            around.refusals.tell("not_renewed", host=record.hostname, peer=record.address, error=why_not)
        else:
            around.counts["renewed"] += 1
        await session.send(convert.encode_certificate(chain))

    async def _announce(self, message: pb.Layout, size: int) -> float:
        session, around = self._session, self._around
        # Machines of one kind have one layout: it is read and kept once for all of them. Its id is
        # the hash of its content, so whoever sends a known id means the known layout.
        layout = around.layouts.get(message.id)
        if layout is None:
            if size > _LARGE_LAYOUT:
                layout = await asyncio.to_thread(convert.decode_layout, message)
            else:
                layout = convert.decode_layout(message)
            around.layouts[layout.id] = layout
        if layout.id not in session.layouts:
            session.layouts_size += layout.size
            if session.layouts and session.layouts_size > _MOST_LAYOUTS:
                around.counts["full"] += 1
                raise TooManyLayouts(f"layouts that take up more than {_MOST_LAYOUTS} bytes on one stream")
            session.layouts[layout.id] = layout
        cost = max(1.0, len(layout.checks) / CHECKS_PER_REPORT, layout.series_count / SERIES_PER_REPORT)
        session.report_cost = max(session.report_cost, cost)
        return cost
