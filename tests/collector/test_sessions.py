"""What a collector says to its open streams, by itself and all at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio

from collector.core.identity import Bearer, TrustedCas
from collector.ingest.sessions import Patience, Session, Sessions
from collector.ingest.trust import TrustTeller
from fleetpulse import convert
from fleetpulse.convert import Ack, Goodbye, StreamResponse, Throttle, Trust
from fleetpulse.model import Layout
from fleetpulse.rpc import open_stream, read_response, serve_streams
from tests.collector.fleet import record

LARGE = StreamResponse.FromString(b"\xfa\x01\xff\xff\x03" + bytes(65_535))  # an unknown field of 64 kB


class Line:
    """What was written to one stream, one message at a time or not."""

    def __init__(self, seconds: float = 0.0):
        self.said: list[Any] = []
        self.overlapped = False
        self._seconds = seconds
        self._busy = False

    async def write(self, message: StreamResponse) -> None:
        self.overlapped |= self._busy
        self._busy = True
        await asyncio.sleep(self._seconds)
        self._busy = False
        self.said.append(convert.decode_response(message))


def join(sessions: Sessions, write: Callable[[StreamResponse], Awaitable[None]], name: str = "h") -> Session:
    task = asyncio.current_task()
    assert task is not None
    session = Session(record(host_id=name), 1, 1, write, task)
    sessions.join(session)
    return session


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)


def test_an_ack_a_throttle_and_a_goodbye_are_never_written_at_once() -> None:
    async def talk() -> Line:
        line, sessions = Line(0.01), Sessions()
        session = join(sessions, line.write)
        session.is_idle = True
        session.send_aside(convert.encode_throttle(1))
        leaving = asyncio.create_task(sessions.say_goodbye())
        await asyncio.sleep(0)
        await session.send(convert.encode_ack(7))
        await leaving
        return line

    line = asyncio.run(talk())
    assert not line.overlapped
    assert {type(message) for message in line.said} == {Throttle, Goodbye, Ack}


def test_agents_that_wait_for_us_are_told_again_and_again_to_go_on_waiting() -> None:
    async def wait() -> tuple[Line, Line, Sessions]:
        sessions = Sessions(patience=Patience(look=0.01, held=0.05))
        waiting, idle = Line(), Line()
        held = join(sessions, waiting.write, "waiting")
        join(sessions, idle.write, "idle")
        watch = asyncio.create_task(sessions.watch())
        held.held_since = asyncio.get_running_loop().time()
        await until(lambda: len(waiting.said) >= 3)
        held.held_since = 0.0
        told = len(waiting.said)
        await asyncio.sleep(0.2)
        assert len(waiting.said) <= told + 1, "it waits no longer"
        watch.cancel()
        return waiting, idle, sessions

    waiting, idle, sessions = asyncio.run(wait())
    # Longer than the time to the next one, so that no gap is left in which an agent gives up.
    assert all(isinstance(message, Throttle) and message.retry_after >= 50 for message in waiting.said)
    assert not idle.said
    assert sessions.counts["held"] == len(waiting.said)


@asynccontextmanager
async def serving(
    sessions: Sessions, talk: Callable[[Session], Awaitable[None]]
) -> AsyncIterator[Callable[[], Any]]:
    """A real server that `talk`s to every stream; yields how to open one."""

    async def serve(_: object, context: Any) -> None:
        await context.read()
        session = join(sessions, context.write)
        try:
            await talk(session)
        except asyncio.CancelledError:
            async with asyncio.timeout(0.1):
                await context.abort(grpc.StatusCode.ABORTED, session.ended)
        finally:
            sessions.leave(session)

    server = aio.server()
    serve_streams(server, serve)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    watch = asyncio.create_task(sessions.watch())
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        def call() -> Any:
            return open_stream(channel)

        yield call
    watch.cancel()
    await server.stop(None)


async def talk_on(session: Session) -> None:
    while True:
        await session.send(LARGE)


def test_a_stream_that_is_never_read_is_ended_and_its_peer_can_tell_why(monkeypatch) -> None:
    async def never_read() -> str:
        sessions = Sessions(patience=Patience(look=0.02, unread=0.3))
        monkeypatch.setattr("collector.ingest.sessions._LAST_WRITE_PATIENCE", 0.3)
        async with serving(sessions, talk_on) as call:
            stream = call()
            await stream.write(convert.StreamRequest())
            await until(lambda: len(sessions) == 1)
            await until(lambda: len(sessions) == 0)
            try:
                while await read_response(stream) is not None:
                    pass
            except aio.AioRpcError as error:
                return error.details() or ""
        return ""

    assert asyncio.run(never_read()) == "unread"


def test_a_stream_that_is_replaced_while_it_is_welcomed_is_told_why() -> None:
    """Two machines with one identity, say, that connect at once: each has to hear of the other."""

    async def be_replaced(session: Session) -> None:
        asyncio.get_running_loop().call_soon(session.end, "replaced")  # while the first message is written
        await session.send(convert.encode_welcome(0, 1, 1))
        await asyncio.sleep(1000)

    async def replaced() -> str:
        async with asyncio.timeout(20), serving(Sessions(), be_replaced) as call:
            stream = call()
            await stream.write(convert.StreamRequest())
            try:
                while await read_response(stream) is not None:
                    pass
            except aio.AioRpcError as error:
                return error.details() or ""
        return ""

    assert asyncio.run(replaced()) == "replaced"


def test_a_goodbye_is_not_held_up_by_who_does_not_read() -> None:
    async def part() -> tuple[Line, float]:
        sessions = Sessions()
        good, began = Line(), asyncio.get_running_loop().time()
        stuck = join(sessions, Line(1000).write, "stuck")
        stuck.is_idle = join(sessions, good.write, "good").is_idle = True
        await sessions.say_goodbye()
        return good, asyncio.get_running_loop().time() - began

    good, seconds = asyncio.run(part())
    assert [type(message) for message in good.said] == [Goodbye]
    assert seconds < 10


def test_what_a_stream_announced_is_forgotten_when_it_ends() -> None:
    """Although the stream itself may wait long for the garbage collection."""

    async def talk() -> Session:
        sessions = Sessions()
        session = join(sessions, Line(0).write)
        session.layouts[b"id"] = Layout(())
        sessions.leave(session)
        return session

    assert not asyncio.run(talk()).layouts


CAS = TrustedCas(b"new bundle", b"new", b"new CA")


class Signer:
    """Knows whom to trust, and signs nothing."""

    trust = CAS

    async def renew(self, bearer: Bearer, csr: bytes) -> bytes:
        raise NotImplementedError


def test_a_fleet_is_told_whom_to_trust_a_few_at_a_time(monkeypatch) -> None:
    """Ten thousand messages in one turn of the loop would hold up every ack."""
    monkeypatch.setattr("collector.ingest.trust._TURN", 0.2)

    async def talk() -> tuple[int, list[Line]]:
        sessions, lines = Sessions(), [Line() for _ in range(121)]
        for number, line in enumerate(lines):
            session = join(sessions, line.write, f"h{number}")
            session.fingerprint, session.issuer = b"f", b"new CA" if number else b"old CA"
        lines[-1].said.append("left")
        sessions.leave(session)
        TrustTeller(sessions, Signer()).tell_all()
        await until(lambda: bool(lines[0].said))
        await asyncio.sleep(0)
        at_first = sum(bool(line.said) for line in lines[:-1])
        await until(lambda: all(line.said for line in lines))
        return at_first, lines

    at_first, lines = asyncio.run(talk())
    assert at_first <= 50
    said = [line.said for line in lines]
    assert said == [
        [Trust(b"new bundle", 2_400)],
        *[[Trust(b"new bundle", 0)]] * 119,
        ["left"],
    ]


def test_who_is_welcomed_is_told_whom_to_trust_unless_it_knows() -> None:
    async def talk(trust_id: bytes, issuer: bytes, fingerprint: bytes = b"f") -> list[Any]:
        sessions, line = Sessions(), Line()
        session = join(sessions, line.write)
        session.trust_id, session.issuer, session.fingerprint = trust_id, issuer, fingerprint
        await TrustTeller(sessions, Signer()).greet(session)
        return line.said

    assert asyncio.run(talk(b"new", b"new CA")) == []
    assert asyncio.run(talk(b"old", b"new CA")) == [Trust(b"new bundle", 0)]
    # It has the bundle, but was restarted before it had asked for a certificate.
    assert asyncio.run(talk(b"new", b"old CA")) == [Trust(b"new bundle", 1_000)]
    assert asyncio.run(talk(b"", b"", fingerprint=b"")) == [], "in plaintext"
