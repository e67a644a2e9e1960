"""From a stream's first message to a session, or a refusal.

A Hello from another place than the one where its host lives is held: the agent is asked to wait, until the
host's stream ends, or is silent for so long that it must be dead, or speaks. See `core.identity`.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from grpc import StatusCode, aio

from collector.core.identity import Contest
from collector.core.pacer import Pacer
from collector.core.peer import address_of
from collector.core.status import HostRecord
from collector.ingest.bounds import Bounds
from collector.ingest.door import Door
from collector.ingest.endings import Refused
from collector.ingest.items import Held, Registered
from collector.ingest.peer_certificate import PeerCertificate
from collector.ingest.sessions import Session, Sessions
from fleetpulse import convert
from fleetpulse.convert import WireError
from fleetpulse.model import Hello
from fleetpulse.rpc import ServedStream

_HELLOS_BURST = 120.0  # seconds of a host's pace that it may use up at once
_MOST_HELD = 1_000  # newcomers that wait at once
_MOST_HELD_EACH = 4  # of one host: a thousand clones must not take the streams that the original may have
_WRITE_PATIENCE = 5.0  # seconds that a newcomer has to take the word that it has to wait


class Admission:
    """Lets streams in. `name` is this collector's, `now` in milliseconds, `counts` where it counts."""

    def __init__(
        self,
        door: Door,
        sessions: Sessions,
        now: Callable[[], int],
        bounds: Bounds,
        name: str,
        counts: Counter[str],
    ):
        self._door = door
        self._sessions = sessions
        self._now = now
        self._bounds = bounds
        self._name = name
        self._counts = counts
        hellos = bounds.hellos_per_minute / 60
        self._pacer = Pacer(hellos, max(1.0, _HELLOS_BURST * hellos))
        # From asking the database until the session is there: of two Hellos, the second meets the first.
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._held: Counter[str] = Counter()  # newcomers that wait, by their host

    async def admit(self, context: ServedStream, certificate: PeerCertificate | None) -> tuple[Session, int]:
        """The session of a stream that said a good Hello, and the last committed number of its epoch.

        Raises Refused, HelloRefused, WireError or StoreError.
        """
        self._refuse_when_closing()
        hello = await self._hello(context)
        if certificate is not None and not certificate.names(hello.host_id):
            named = ", ".join(sorted(certificate.uris)) or "none"
            text = f"the certificate names {named[:200]}, the Hello is of {hello.host_id}"
            raise Refused(StatusCode.PERMISSION_DENIED, text, "wrong_host", hello.hostname)
        record = _record(hello, address_of(context.peer()), self._name)
        # Clones do not use up what the original may ask for, nor who has an older certificate of its.
        fingerprint = None if certificate is None else certificate.fingerprint
        if not self._pacer.try_spend((hello.host_id, record.address, fingerprint), 1, time.monotonic()):
            text = "this host connects too often; do two machines share its identity?"
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, text, "too_many_hellos", hello.hostname)
        contest: Contest | None = None
        while True:
            answer = await self._register(context, hello, record, fingerprint, contest)
            if not isinstance(answer, Held):
                return answer
            contest = answer.contest
            await self._hold(context, hello, answer.wait)

    async def _register(
        self,
        context: ServedStream,
        hello: Hello,
        record: HostRecord,
        fingerprint: bytes | None,
        contest: Contest | None,
    ) -> tuple[Session, int] | Held:
        turn = self._turns.setdefault(hello.host_id, asyncio.Lock())
        async with turn:
            open_session = self._sessions.of(hello.host_id)
            answer = await self._door.register(
                record,
                hello.epoch,
                self._now(),
                fingerprint=fingerprint,
                open_since=open_session.opened_at if open_session else 0,
                contest=contest,
            )
            if isinstance(answer, Held):
                return answer
            self._refuse_when_closing()
            session = self._session(context, hello, replace(record, hostname=answer.name), answer)
            self._sessions.join(session)
            return session, answer.committed_seq

    def _session(
        self, context: ServedStream, hello: Hello, record: HostRecord, registered: Registered
    ) -> Session:
        task = asyncio.current_task()
        assert task is not None
        session = Session(record, hello.epoch, registered.host, context.write, task, opened_at=self._now())
        certificate = registered.certificate
        if certificate is not None:
            session.trust_id = hello.trust_id
            session.fingerprint, session.issuer = certificate.fingerprint, certificate.issuer
            # By the system's clock, by which the handshake was judged too.
            session.expires = time.monotonic() + certificate.not_after / 1000 - time.time()
        return session

    async def _hold(self, context: ServedStream, hello: Hello, wait: int) -> None:
        """Have a newcomer wait, but not longer than the stream of the one that is known."""
        held, host_id = self._held, hello.host_id
        if held[host_id] >= _MOST_HELD_EACH or held.total() >= _MOST_HELD:
            text = "another machine has this identity, and too many wait to see whether it lives"
            raise Refused(StatusCode.UNAVAILABLE, text, "contested", hello.hostname)
        self._counts["contested"] += 1
        held[host_id] += 1
        try:
            try:
                async with asyncio.timeout(_WRITE_PATIENCE):
                    await context.write(convert.encode_throttle(wait))
            except TimeoutError:
                text = "does not read what it is told"
                raise Refused(StatusCode.ABORTED, text, "unread", hello.hostname) from None
            incumbent = self._sessions.of(host_id)
            if incumbent is None:
                await asyncio.sleep(wait / 1000)
            else:
                await asyncio.wait({incumbent.task}, timeout=wait / 1000)
        finally:
            held[host_id] -= 1
            if not held[host_id]:
                del held[host_id]

    async def _hello(self, context: ServedStream) -> Hello:
        try:
            async with asyncio.timeout(self._bounds.hello_timeout):
                data: Any = await context.read()
        except TimeoutError:
            raise Refused(StatusCode.DEADLINE_EXCEEDED, "no Hello in time", "no_hello") from None
        if data is aio.EOF:
            raise WireError("a stream starts with Hello")
        request = convert.decode_request(data)
        if request.WhichOneof("message") != "hello":
            raise WireError("a stream starts with Hello")
        return convert.decode_hello(request.hello)

    def _refuse_when_closing(self) -> None:
        if self._sessions.are_closing:
            raise Refused(StatusCode.UNAVAILABLE, "the collector is stopping")


def _record(hello: Hello, address: str, collector: str) -> HostRecord:
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
        hello.hardware_id,
        hello.instance,
        collector,
    )
