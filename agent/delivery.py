"""Delivery: one stream after the other, for as long as the agent runs.

Decides how long to wait before the next stream, and keeps one bad report from holding up the rest: if
a batch is refused as malformed, its reports are sent again one by one, and one that is refused alone is
dropped and counted. Nothing else is ever dropped here, and nothing makes delivery give up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from typing import NoReturn

import grpc

from agent.backlog import Spool
from agent.backoff import Backoff
from agent.complaints import Complaints
from agent.credential_files import CredentialsError
from agent.credentials import Credentials
from agent.spool_file import SpoolError
from agent.stream import Stream, Timeouts
from agent.stream_end import (
    StreamDismissedError,
    StreamEndedError,
    StreamRefusedError,
    StreamRenewedError,
)
from fleetpulse.model import Facts, Hello

log = logging.getLogger(__name__)

REFUSED_DELAY = 30.0  # seconds at least before a collector that refused is bothered again
MAX_BACKOFF = 60.0  # seconds between two tries; less for a host with a short time-to-live
MAX_GOODBYE = 3600.0  # seconds; no Goodbye, however mistaken, keeps the agent away for longer
_ISOLATING_DELAY = 8.0  # seconds; waits grow no longer while bad reports are being sorted out


class Delivery:
    """Delivers what is in `spool` to the collector at `target`, in plaintext unless there are `credentials`.

    `hello.epoch` and `hello.trust_id` are filled in. `on_acked` hears every number that was committed. Cheap
    enough to have thousands of in one event loop.
    """

    def __init__(
        self,
        target: str,
        spool: Spool,
        hello: Hello,
        timeouts: Timeouts | None = None,
        *,
        credentials: Credentials | None = None,
        backoff: Backoff | None = None,
        refused_delay: float = REFUSED_DELAY,
        on_acked: Callable[[int], None] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.spool = spool
        self.facts: Facts | None = None
        self.acked_seq = 0
        self._target = target
        self._hello = hello
        self._credentials = credentials
        self._timeouts = timeouts or Timeouts()
        # Back well within a time-to-live after an outage, or who is alive would be called silent.
        self._backoff = backoff or Backoff(cap=min(MAX_BACKOFF, hello.ttl / 2000))
        self._refused_delay = refused_delay
        self._on_acked = on_acked
        self._draw = draw
        self._stream: Stream | None = None
        self._failing_since: float | None = (
            None  # the loop's clock; when a stream ended and no Ack came since
        )
        self._suspect_seq = 0  # the last report of a batch that was refused; 0: none is suspected
        self._suspect_facts: Facts | None = None
        self._refused_facts: Facts | None = None
        self._complaints = Complaints()

    @property
    def cautious(self) -> bool:
        """Whether a bad report is being looked for."""
        return self._suspect_seq > 0

    def wake(self) -> None:
        """A report was appended. Call it in the event loop's thread."""
        if self._stream is not None:
            self._stream.wake()

    def set_facts(self, facts: Facts) -> None:
        """Facts to send now and on every later stream. Call it in the event loop's thread."""
        if facts != self.facts and facts != self._refused_facts:
            self.facts = facts
            self.wake()

    async def run(self) -> NoReturn:
        """Deliver until cancelled."""
        try:
            while True:
                delay = await self._deliver_once()
                await asyncio.sleep(delay)
        finally:
            if self._credentials is not None:
                self._credentials.close()

    async def _deliver_once(self) -> float:
        """Run one stream, whatever comes of it; seconds to wait before the next."""
        try:
            return await self._deliver()
        except (SpoolError, CredentialsError) as error:
            delay = self._next_delay()
            self._report(logging.WARNING, str(error), delay)
        except Exception:
            delay = self._next_delay()
            log.exception("stream to %s failed; next one in %.1f s", self._target, delay)
        return delay

    async def _deliver(self) -> float:
        """Run one stream; seconds to wait before the next."""
        stream = self._stream = Stream(self._target, self, self._hello, self._timeouts, self._credentials)
        try:
            await stream.run()
        except StreamRenewedError:
            return 0.0
        except StreamEndedError as end:
            return await self._after(end, stream)
        finally:
            self._stream = None

    def acked(self, seq: int) -> None:
        """The stream's word that everything up to `seq` is committed."""
        if seq <= self.acked_seq:
            return
        self.acked_seq = seq
        self._failing_since = None
        if self._complaints.settle():
            log.info("delivering to %s again, %d reports wait", self._target, self.spool.pending())
        if self._suspect_seq and seq >= self._suspect_seq:
            self._suspects_cleared()
        if self._on_acked is not None:
            self._on_acked(seq)

    def too_large(self, what: str, size: int, limit: int, seq: int) -> None:
        """The stream's word that it dropped a report that no message can hold."""
        log.error(
            "report %d dropped: the %s has %d bytes, more than the %d that the collector takes",
            seq,
            what,
            size,
            limit,
        )

    async def _after(self, end: StreamEndedError, stream: Stream) -> float:
        """Seconds to wait before the stream that follows `stream`."""
        level = logging.WARNING
        if isinstance(end, StreamDismissedError):
            # Exactly what the collector asked for, because it spreads its agents over time; unless it
            # says goodbye over and over.
            is_first = self._failing_since is None
            floor = self._next_delay()
            if is_first:
                floor = 0.0
            delay = max(floor, min(end.reconnect_after, MAX_GOODBYE))
            level = logging.INFO
        elif isinstance(end, StreamRefusedError):
            delay = await self._after_refusal(end, stream)
        else:
            delay = self._next_delay()
        self._report(level, str(end), delay)
        return delay

    async def _after_refusal(self, end: StreamRefusedError, stream: Stream) -> float:
        batch = end.in_flight
        malformed = end.code is grpc.StatusCode.INVALID_ARGUMENT
        # A server that reads no message so large says RESOURCE_EXHAUSTED: smaller ones may pass.
        if batch is None or not (malformed or end.code is grpc.StatusCode.RESOURCE_EXHAUSTED):
            delay = self._refused_delay
            if batch is None and end.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                # Nothing is wrong with this host, there was no room: it is to be back in time.
                delay = min(delay, self._hello.ttl / 2000)
            return delay + self._next_delay()
        if not self._suspect_seq:
            self._suspect_seq = batch.last_seq
            self._suspect_facts = stream.unproven_facts
        elif malformed and len(batch.reports) == 1:
            await asyncio.to_thread(self.spool.discard, batch.last_seq)  # a commit may hang
            self._suspect_facts = None  # there was a culprit, the facts are not it
            log.error("report %d dropped: %s", batch.last_seq, end)
            if batch.last_seq >= self._suspect_seq:
                self._suspect_seq = 0
        else:
            return self._refused_delay + self._next_delay()
        return self._next_delay(at_most=_ISOLATING_DELAY)

    def _suspects_cleared(self) -> None:
        """Every report of the refused batch went through alone, or was dropped."""
        self._suspect_seq = 0
        if self._suspect_facts is not None:
            log.error("the facts are not sent again until they change: the collector refused them")
            self._refused_facts = self._suspect_facts
            if self.facts == self._suspect_facts:
                self.facts = None
            self._suspect_facts = None

    def _next_delay(self, at_most: float = math.inf) -> float:
        """Seconds, by how long no Ack has come."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        return self._backoff.delay(min(now - self._failing_since, at_most), self._draw())

    def _report(self, level: int, problem: str, delay: float) -> None:
        level = self._complaints.level(problem, level)
        log.log(level, "stream to %s ended: %s; next one in %.1f s", self._target, problem, delay)
