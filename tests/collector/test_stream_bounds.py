"""What one stream may ask of a real collector."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import grpc
import psutil
import pytest

from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
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
from tests.mariadb_server import database_of
from tests.processes import Site, wait_until


def wide_layout(number: int) -> Layout:
    measurements = tuple(Measurement(f"m{n}", "1") for n in range(convert.MAX_SERIES))
    return Layout((CheckLayout(CheckKey(f"c{number}"), measurements),))


def test_a_stream_of_ever_new_layouts_is_ended_before_it_fills_the_memory(sqlite_site: Site) -> None:
    collector = sqlite_site.collector(limits_reports_per_second="10000")
    code, details = asyncio.run(_announce_layouts(sqlite_site.address, 30))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "take up more than" in details
    assert collector.stop() == 0
    counts = json.loads(collector.wait_for_log('"stopped"'))
    assert counts["full"] == 1
    assert "malformed" not in counts


def many_checks(number: int) -> Layout:
    return Layout(
        tuple(CheckLayout(CheckKey("n", f"{number}-{n}"), (Measurement("a", "1"),)) for n in range(3_000))
    )


def long_names(number: int) -> Layout:
    """Four bytes of memory for each character, by one rare one in each name."""
    return Layout(
        (
            CheckLayout(
                CheckKey("n"),
                tuple(
                    Measurement(f"{number}-{n}-".ljust(254, "m") + "\U0001f600", "u" * 240 + "\U0001f600")
                    for n in range(1_800)
                ),
            ),
        )
    )


@pytest.mark.parametrize(
    ("layout", "reports"),
    [(many_checks, 60), pytest.param(long_names, 24, id="too-many-for-one-stream-in-one-batch")],
)
def test_a_backlog_whose_layout_changes_with_each_report_is_delivered_whole(
    sqlite_site: Site, layout: Callable[[int], Layout], reports: int
) -> None:
    """It takes more streams than one, and neither reports nor facts are blamed for that."""
    collector = sqlite_site.collector(limits_reports_per_second="10000")
    spool = MemorySpool()
    for number in range(reports):
        one = layout(number)
        spool.append(number + 1, one, (1.0,) * one.series_count, ())
    hello = new_hello()
    delivery = asyncio.run(_deliver_all(sqlite_site.address, spool, hello))
    assert delivery.acked_seq == reports
    assert collector.stop() == 0
    counts = json.loads(collector.wait_for_log('"stopped"'))
    assert counts["streams"] > 1
    assert counts["reports"] == reports, "each one once"
    assert "malformed" not in counts


def test_a_message_of_large_reports_is_committed_in_parts(sqlite_site: Site) -> None:
    """Between them the other hosts of the same writer have their turn."""
    sqlite_site.collector()
    checks = convert.MAX_CHECKS
    layout = Layout(tuple(CheckLayout(CheckKey(f"c{n}"), ()) for n in range(checks)))
    states = [
        tuple(CheckResult(n, state, "") for n in range(checks)) for state in (State.WARNING, State.CRITICAL)
    ]
    reports = [Report(seq, seq, layout, (), states[seq % 2]) for seq in range(1, 11)]
    before = hello_and_reports(layout, reports[:1])
    asyncio.run(_send_until_acked(sqlite_site.address, before, 1))
    with closing(sqlite3.connect(sqlite_site.database_url.removeprefix("sqlite:///"))) as database:
        (commits,) = database.execute("SELECT version FROM host_seen").fetchone()
        asyncio.run(_send_until_acked(sqlite_site.address, hello_and_reports(layout, reports[1:]), 10))
        (then,) = database.execute("SELECT version FROM host_seen").fetchone()
        assert then - commits > 3
        assert database.execute("SELECT seq FROM host_seen").fetchone() == (10,)
        (events,) = database.execute("SELECT COUNT(*) FROM event WHERE kind = 'state'").fetchone()
    assert events == checks * len(reports)


def test_a_report_that_the_database_refuses_is_refused_and_harms_nobody(mariadb_site: Site, mariadb) -> None:
    """As if its bounds and ours differed: the agent hears why, and the others' batch goes through."""
    collector = mariadb_site.collector()
    mariadb_site.agent(interval="200ms")
    database = database_of(mariadb_site.database_url)
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
    # What was said on one connection says nothing of another: only when it is gone has all of it been heard.
    process = psutil.Process(collector.pid)
    wait_until(lambda: all(one.status != psutil.CONN_ESTABLISHED for one in process.net_connections("tcp")))
    assert collector.stop() == 0
    assert json.loads(collector.wait_for_log('"stopping"'))["streams"] == 0


def new_hello() -> Hello:
    return Hello(HostId(str(uuid.uuid4())), "hostname", "m", "b", 1, "1", 60_000, 180_000)


def hello_and_reports(layout: Layout, reports: Sequence[Report]) -> list[convert.StreamRequest]:
    """What a stream of one host says, always the same one."""
    hello = Hello(HostId(str(uuid.UUID(int=1))), "hostname", "m", "b", 1, "1", 60_000, 180_000)
    return [
        convert.encode_hello(hello),
        convert.encode_layout(layout),
        convert.encode_batch(map(convert.encode_report, reports)),
    ]


async def _send_until_acked(address: str, messages: Sequence[convert.StreamRequest], last_seq: int) -> None:
    async with asyncio.timeout(60), grpc.aio.insecure_channel(address) as channel:
        call = open_stream(channel)
        for message in messages:
            await write_request(call, message)
        while (answer := await read_response(call)) is not None:
            if convert.decode_response(answer) == convert.Ack(last_seq):
                return
    raise AssertionError("ended without an ack")


async def _deliver_all(address: str, spool: MemorySpool, hello: Hello) -> Delivery:
    """Deliver as an agent does until nothing waits, and its facts are known to be good."""
    done = asyncio.Event()
    last_seq = spool.last_seq

    def acked(seq: int) -> None:
        if seq == last_seq:
            done.set()

    delivery = Delivery(address, spool, hello, refused_delay=0.5, on_acked=acked)
    task = asyncio.create_task(delivery.run())
    async with asyncio.timeout(60):
        await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return delivery


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
