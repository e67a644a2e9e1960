"""What one stream may ask of a real collector."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace

import grpc

from fleetpulse import convert
from fleetpulse.model import (
    CheckKey,
    CheckLayout,
    CheckResult,
    Hello,
    HostId,
    Layout,
    Measurement,
    Report,
    State,
)
from fleetpulse.rpc import CallOverError, open_stream, read_response, write_request
from tests.processes import Site, wait_until


def wide_layout(number: int) -> Layout:
    measurements = tuple(Measurement(f"m{n}", "1") for n in range(convert.MAX_SERIES))
    return Layout((CheckLayout(CheckKey(f"c{number}"), measurements),))


def test_a_stream_of_ever_new_layouts_is_ended_before_it_fills_the_memory(sqlite_site: Site) -> None:
    sqlite_site.collector()
    code, details = asyncio.run(_announce_layouts(sqlite_site.address, 12))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "200000 checks and series" in details


def test_a_report_that_the_database_refuses_is_refused_and_harms_nobody(mariadb_site: Site, mariadb) -> None:
    """As if its bounds and ours differed: the agent hears why, and the others' batch goes through."""
    collector = mariadb_site.collector()
    mariadb_site.agent(interval="200ms")
    database = mariadb_site.database_url.partition("?")[0].rpartition("/")[2]
    mariadb.query("ALTER TABLE check_state MODIFY message VARCHAR(8) NOT NULL", database=database)
    code, details = asyncio.run(_report_failure(mariadb_site.address, "far longer than that"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be stored" in details
    assert asyncio.run(_report_failure(mariadb_site.address, "short"))[0] is grpc.StatusCode.OK
    wait_until(
        lambda: (
            {"agent": "fresh"}.items()
            <= {host["hostname"]: host["presence"] for host in mariadb_site.json("hosts")["hosts"]}.items()
        )
    )
    assert collector.is_running


def test_text_that_is_not_utf_8_is_the_agents_mistake_and_is_counted(sqlite_site: Site) -> None:
    """Not an INTERNAL error, which would be ours and which agents repeat for ever."""
    collector = sqlite_site.collector()
    hello = convert.encode_hello(new_hello()).SerializeToString()
    broken = hello.replace(b"hostname", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe")
    assert broken != hello
    code, details = asyncio.run(_send_bytes(sqlite_site.address, broken))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("not a message")
    assert collector.stop() == 0
    assert json.loads(collector.wait_for_log('"stopped"'))["malformed"] == 1


def test_a_host_that_connects_too_often_is_asked_to_stay_away_for_a_while(sqlite_site: Site) -> None:
    collector = sqlite_site.collector(limits_hellos_per_minute="1")
    hello = new_hello()

    def connect(said: Hello) -> grpc.StatusCode:
        return asyncio.run(_send_bytes(sqlite_site.address, convert.encode_hello(said).SerializeToString()))[
            0
        ]

    codes = [connect(replace(hello, epoch=epoch)) for epoch in range(1, 5)]
    # With RESOURCE_EXHAUSTED an agent waits at least 30 s.
    assert codes == [grpc.StatusCode.OK] * 2 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
    assert connect(new_hello()) is grpc.StatusCode.OK, "another host may"
    assert collector.stop() == 0
    assert json.loads(collector.wait_for_log('"stopped"'))["too_many_hellos"] == 2


def test_agents_that_leave_while_they_are_welcomed_leave_nothing_behind(sqlite_site: Site) -> None:
    collector = sqlite_site.collector()
    asyncio.run(_say_hello_and_leave(sqlite_site.address, 200))
    assert asyncio.run(_send_bytes(sqlite_site.address, b""))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert collector.stop() == 0
    assert json.loads(collector.wait_for_log('"stopping"'))["streams"] == 0


def new_hello() -> Hello:
    return Hello(HostId(str(uuid.uuid4())), "hostname", "m", "b", 1, "1", 60_000, 180_000)


async def _send_bytes(address: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """Send one message and nothing more; how the stream ends."""
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream("/fleetpulse.v1.IngestService/Stream")()
        await call.write(data)
        await call.done_writing()
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return await call.code(), ""


async def _say_hello_and_leave(address: str, times: int) -> None:
    """Cancelled at all moments between Hello and a little after Welcome."""
    async with asyncio.timeout(60), grpc.aio.insecure_channel(address) as channel:
        for number in range(times):
            call = open_stream(channel)
            await write_request(call, convert.encode_hello(new_hello()))
            await asyncio.sleep(0.0002 * (number % 50))
            call.cancel()


async def _report_failure(address: str, message: str) -> tuple[grpc.StatusCode, str]:
    hello = Hello(HostId(str(uuid.uuid4())), "h", "m", "b", 1, "1", 60_000, 180_000)
    layout = Layout((CheckLayout(CheckKey("plugin"), ()),))
    report = Report(1, 0, layout, (), (CheckResult(0, State.WARNING, message),))
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        call = open_stream(channel)
        await write_request(call, convert.encode_hello(hello))
        await write_request(call, convert.encode_layout(layout))
        await write_request(call, convert.encode_batch([convert.encode_report(report)]))
        try:
            while (answer := await read_response(call)) is not None:
                if isinstance(convert.decode_response(answer), convert.Ack):
                    return grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.UNKNOWN, "ended without an ack"


async def _announce_layouts(address: str, layouts: int) -> tuple[grpc.StatusCode, str]:
    hello = Hello(HostId(str(uuid.uuid4())), "h", "m", "b", 1, "1", 1_000, 3_000)
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        call = open_stream(channel)
        try:
            await write_request(call, convert.encode_hello(hello))
            for number in range(layouts):
                await write_request(call, convert.encode_layout(wide_layout(number)))
        except CallOverError:
            pass
        try:
            while await read_response(call) is not None:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
