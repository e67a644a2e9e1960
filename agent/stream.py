"""One stream to the collector, from Hello to its end.

    Hello -> Welcome -> (Facts) -> Layout, reports -> Ack -> reports -> Ack -> ...

One batch is in flight at a time, so that what is sent and not acked stays small and an Ack tells which
batch it answers. Every wait for the peer has a deadline: a half-open connection, on which nothing ever
fails, ends like any other. A stream always ends by raising one of the `StreamEndedError` family.

Between two batches a stream with credentials sees to them: it asks for a new certificate when it is time,
and ends as soon as it has one, with nothing in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

import grpc
import grpc.aio

from agent.backlog import Spool, Waiting
from agent.channel import open_channel
from agent.credential_files import Stored
from agent.credentials import Credentials
from agent.handshake import explained, is_distrust
from agent.stream_end import (
    StreamDismissedError,
    StreamEndedError,
    StreamLostError,
    StreamOutdatedError,
    StreamRefusedError,
    StreamRenewedError,
    ended_by,
)
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import Facts, Hello
from fleetpulse.rpc import CallOverError, StreamCall, open_stream, read_response, write_request

MAX_PAUSE = 300.0  # seconds; no Throttle, however mistaken, silences the agent for longer
DEFAULT_BATCH_REPORTS = 500
DEFAULT_MESSAGE_BYTES = 4 << 20  # what gRPC servers read unless told otherwise
_ANNOUNCING = 16  # bytes that a message needs around a layout, at most
_BATCH_SHARE = 0.75  # of a message that a batch may fill: payloads are counted without their frames


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    welcome: float = 20.0
    ack: float = 30.0


class Source(Protocol):
    """What a stream delivers, and whom it tells."""

    spool: Spool
    facts: Facts | None

    @property
    def cautious(self) -> bool:
        """Send one report at a time and no facts, to find out which of them is refused."""

    def acked(self, seq: int) -> None:
        """Everything up to `seq` is committed and has left the spool."""

    def too_large(self, what: str, size: int, limit: int, seq: int) -> None:
        """`what` of the report `seq` will never fit into a message; it has left the spool."""


class Stream:
    """One call on its own channel. `run` may be called once."""

    def __init__(
        self,
        target: str,
        source: Source,
        hello: Hello,
        timeouts: Timeouts,
        credentials: Credentials | None = None,
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._certificate: convert.Certificate | None = None  # said and not seen to yet, as is this:
        self._trust: convert.Trust | None = None
        self._reminder: asyncio.TimerHandle | None = None
        self._source = source
        self._hello = replace(hello, epoch=source.spool.epoch)
        self._timeouts = timeouts
        self._changed = asyncio.Event()
        self._welcome: convert.Welcome | None = None
        self._acked = 0
        self._sent = 0
        self._in_flight: Waiting | None = None
        self._deadline: asyncio.Timeout | None = None
        self._resume_at = 0.0  # the loop's clock; a Throttle moves it on
        self._announced: set[bytes] = set()
        self._end: StreamEndedError | None = None
        self._sent_facts: Facts | None = None
        self.unproven_facts: Facts | None = None
        """Facts sent after the last Ack, so that nothing tells yet whether the collector takes them."""

    @property
    def committed_seq(self) -> int | None:
        """Where the collector let the stream resume; None before Welcome."""
        return self._welcome.committed_seq if self._welcome else None

    def wake(self) -> None:
        """A report was appended or the facts changed."""
        self._changed.set()

    async def run(self) -> NoReturn:
        """Deliver until the stream ends.

        Raises StreamEndedError, SpoolError from the spool, or CredentialsError.
        """
        stored = None
        if self._credentials is not None:
            stored = await self._credentials.load()
            self._hello = replace(self._hello, trust_id=stored.trust_id)
        try:
            await self._speak(stored)
        except StreamEndedError as error:
            # Where it was raised is full of references to the call. While one of them is left, gRPC's
            # channel goes on connecting, closed or not.
            end = error.with_traceback(None)
            end.__context__ = end.__cause__ = None
        finally:
            self._end = None
        try:
            raise await self._judged(end, stored)
        finally:
            del end

    async def _judged(self, end: StreamEndedError, stored: Stored | None) -> StreamEndedError:
        """`end` in words that help, once what it says of the credentials is noted."""
        credentials, is_welcome = self._credentials, self._welcome is not None
        if isinstance(end, StreamRefusedError):
            if credentials is not None and end.code is grpc.StatusCode.UNAUTHENTICATED:
                await credentials.refused(str(end))
        elif isinstance(end, StreamLostError) and not is_welcome:
            if credentials is not None and is_distrust(str(end)) and credentials.fall_back():
                return StreamRenewedError()
            return StreamLostError(await explained(str(end), self._target, stored, time.time()))
        return end

    async def _speak(self, stored: Stored | None) -> NoReturn:
        channel = open_channel(self._target, self._hello.interval, stored)
        try:
            call = open_stream(channel)
            reader = asyncio.create_task(self._read(call))
            try:
                await self._greet(call)
                while True:
                    await self._send_next(call)
            finally:
                if self._reminder is not None:
                    self._reminder.cancel()
                # Ends the read in progress too. Cancelling the reader itself would do the same, but
                # not if it is just between two reads.
                call.cancel()
                await asyncio.gather(reader, return_exceptions=True)
        finally:
            with contextlib.suppress(Exception):  # it must not hide why the stream ended
                await channel.close()

    async def _greet(self, call: StreamCall) -> None:
        spool = self._source.spool
        async with self._answered_within(self._timeouts.welcome, "no answer within"):
            await self._write(call, convert.encode_hello(self._hello))
            await self._until(lambda: self._welcome is not None)
        if self._credentials is not None:
            await self._credentials.welcomed()
        committed = self.committed_seq or 0
        known = spool.sent_seq
        if committed > known:
            # What is newer than `known` was never sent: the collector has other reports under these
            # numbers. What is not newer was, and is committed.
            spool.ack(known)
            await asyncio.to_thread(spool.new_epoch)
            raise StreamOutdatedError(
                f"the collector has reports up to {committed}, the spool knows only {known}:"
                " its memory was lost, a new epoch begins"
            )
        if not spool.is_contact_noted:
            await asyncio.to_thread(spool.note_contact)
        self._sent = committed
        self._forget(committed)

    async def _send_next(self, call: StreamCall) -> None:
        """Send what comes next and wait for its Ack, or wait until there is something to send."""
        self._raise_if_over()
        if self._credentials is not None:
            await self._see_to(self._credentials, call)
        if await self._paused():
            return
        facts = None if self._source.cautious else self._source.facts
        new_facts = facts is not None and facts != self._sent_facts
        waiting = await self._peek()
        if not new_facts and not waiting.reports:
            await self._wait()
            return
        async with self._answered_within(self._timeouts.ack, "no ack within"):
            if new_facts and facts is not None:
                self._sent_facts = self.unproven_facts = facts
                await self._write(call, convert.encode_facts(facts))
            if waiting.reports:
                await self._send_batch(call, waiting)
        if waiting.reports:
            self._in_flight = self.unproven_facts = None
            self._forget(self._acked)

    async def _see_to(self, credentials: Credentials, call: StreamCall) -> None:
        """Take what the collector said about certificates, and ask for one when it is time."""
        trust, self._trust = self._trust, None
        if trust is not None:
            await credentials.trust(trust.ca_bundle, trust.renew_within)
        certificate, self._certificate = self._certificate, None
        if certificate is not None and await credentials.accept(certificate.chain):
            raise StreamRenewedError
        if await credentials.have_changed():
            raise StreamRenewedError
        csr = credentials.request(self.wake)
        if csr is not None:
            async with self._answered_within(self._timeouts.ack, "the certificate request not taken within"):
                await self._write(call, convert.encode_certificate_request(csr))
        if self._reminder is not None:
            self._reminder.cancel()
        loop = asyncio.get_running_loop()
        self._reminder = loop.call_later(credentials.seconds_until_request(), self.wake)

    async def _peek(self) -> Waiting:
        """What goes out next. Drops what no message can hold."""
        spool = self._source.spool
        most = (self._welcome and self._welcome.max_batch_reports) or DEFAULT_BATCH_REPORTS
        limit = (self._welcome and self._welcome.max_message_bytes) or DEFAULT_MESSAGE_BYTES
        size = int(limit * _BATCH_SHARE)
        while True:
            if spool.epoch != self._hello.epoch:
                raise StreamOutdatedError("the spool began a new epoch")
            waiting = spool.peek(1 if self._source.cautious else most, size, self._announced)
            layout_size = max(map(len, waiting.layouts.values()), default=0) + _ANNOUNCING
            if layout_size > limit and len(waiting.reports) > 1:
                # One by one, to see whose layout it is.
                waiting = spool.peek(1, size, self._announced)
                layout_size = max(map(len, waiting.layouts.values()), default=0) + _ANNOUNCING
            if waiting.reports and len(waiting.reports[0]) > size:
                too_large = "report", len(waiting.reports[0]), size
            elif layout_size > limit:
                too_large = "layout", layout_size, limit
            else:
                return waiting
            # In a thread: a commit may hang.
            await asyncio.to_thread(spool.discard, waiting.first_seq)
            self._source.too_large(*too_large, waiting.first_seq)

    async def _send_batch(self, call: StreamCall, waiting: Waiting) -> None:
        self._in_flight = waiting
        try:
            layouts = {key: convert.announce_layout(data) for key, data in waiting.layouts.items()}
            batch = convert.encode_batch(waiting.reports)
        except WireError as error:
            # The disk gave back something else than it was given. No collector would take it.
            raise StreamRefusedError(
                grpc.StatusCode.INVALID_ARGUMENT, f"unreadable in the spool: {error}", waiting
            ) from None
        for layout_id, layout in layouts.items():
            await self._write(call, layout)
            self._announced.add(layout_id)
        self._sent = waiting.last_seq
        self._source.spool.sent_seq = max(self._source.spool.sent_seq, waiting.last_seq)
        await self._write(call, batch)
        await self._until(lambda: self._acked >= waiting.last_seq)

    def _forget(self, seq: int) -> None:
        self._source.spool.ack(seq)
        self._source.acked(seq)

    @asynccontextmanager
    async def _answered_within(self, seconds: float, what: str) -> AsyncIterator[None]:
        """A deadline that a Throttle puts off."""
        try:
            async with asyncio.timeout(seconds) as self._deadline:
                yield
        except TimeoutError:
            raise StreamLostError(f"{what} {seconds:g} s") from None
        finally:
            self._deadline = None

    async def _paused(self) -> bool:
        """Waits a while, and is True, if the collector asked for a pause that is not over yet."""
        remaining = self._resume_at - asyncio.get_running_loop().time()
        if remaining <= 0:
            return False
        try:
            async with asyncio.timeout(remaining):
                await self._wait()
        except TimeoutError:
            pass
        return True

    async def _write(self, call: StreamCall, message: convert.StreamRequest) -> None:
        try:
            await write_request(call, message)
        except CallOverError:
            # The reader learns why, and `_until` raises that.
            await self._until(lambda: False)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._raise_if_over()
            await self._wait()

    async def _wait(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _raise_if_over(self) -> None:
        if self._end is not None:
            raise self._end

    async def _read(self, call: StreamCall) -> None:
        """Take what the collector says until the call ends, and note why it did."""
        try:
            while True:
                message = await read_response(call)
                if message is None:
                    self._end = StreamLostError("the collector closed the stream")
                    break
                if not self._take(convert.decode_response(message)):
                    break
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self._end = ended_by(error, self._in_flight)
        except WireError as error:
            self._end = StreamLostError(f"the collector sent something malformed: {error}")
        except Exception as error:  # noqa: BLE001 - whatever gRPC raises, the sender must not wait for ever
            self._end = StreamLostError(f"reading failed: {error!r}")
        self._changed.set()

    def _take(self, said: convert.Response | None) -> bool:
        """Act on one message; False if it ends the stream."""
        match said:
            case convert.Welcome():
                self._welcome = said
            case convert.Ack(seq):
                if seq > self._sent:
                    self._end = StreamLostError(f"the collector acked {seq}, but only {self._sent} was sent")
                    return False
                self._acked = max(self._acked, seq)
                # Whoever commits can take more. One that cannot says so again after its Ack.
                self._resume_at = 0.0
            case convert.Certificate():
                self._certificate = said
            case convert.Trust():
                self._trust = said
            case convert.Throttle(retry_after):
                self._pause(retry_after / 1000)
            case convert.Goodbye(reconnect_after):
                self._end = StreamDismissedError(reconnect_after / 1000)
                return False
        return True

    def _pause(self, retry_after: float) -> None:
        self._resume_at = asyncio.get_running_loop().time() + min(retry_after, MAX_PAUSE)
        if self._deadline is not None and not self._deadline.expired():
            # The batch in flight may be stuck behind the very queue that is full, or wait for the
            # database. The collector repeats itself for as long as that lasts.
            self._deadline.reschedule(self._resume_at + self._timeouts.ack)
