from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from agent import channel
from agent.backoff import Backoff
from agent.channel import channel_options
from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
from agent.spool import DiskSpool
from agent.stream import Stream, Timeouts
from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, Hello, HostId, Layout, Measurement, Report
from tests.agent.scripted_collector import Script, serving, until

LAYOUT = Layout((CheckLayout(CheckKey("cpu"), (Measurement("system.cpu.utilization", "1"),)),))
OTHER_LAYOUT = Layout((CheckLayout(CheckKey("load"), (Measurement("system.cpu.load_average.1m", "1"),)),))
HELLO = Hello(
    host_id=HostId("6a7e1b0c-6f0d-4f6d-8f2b-0d6d5a9b1c11"),
    hostname="test",
    machine_id="m",
    boot_id="b",
    epoch=1,
    agent_version="0",
    interval=1000,
    ttl=3000,
)
FAST = Backoff(base=0.02, cap=0.1)


def fill(spool: MemorySpool, count: int, layout: Layout = LAYOUT) -> None:
    for _ in range(count):
        spool.append(spool.last_seq, layout, (float(spool.last_seq),), ())


@asynccontextmanager
async def delivering(port: int, spool: MemorySpool, **options: Any) -> AsyncIterator[Delivery]:
    options = {"timeouts": Timeouts(welcome=5, ack=5), "backoff": FAST, "refused_delay": 0.05} | options
    delivery = Delivery(f"127.0.0.1:{port}", spool, HELLO, **options)
    task = asyncio.create_task(delivery.run())
    try:
        yield delivery
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def test_what_waits_goes_out_in_batches_and_leaves_the_spool() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(max_batch_reports=4)
        fill(spool, 10)
        acked: list[int] = []
        async with serving(script) as port, delivering(port, spool, on_acked=acked.append) as delivery:
            delivery.set_facts({"os.name": "x"})
            await until(lambda: spool.pending() == 0)
            assert script.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
            assert acked == [4, 8, 10]
            assert script.hellos[0].epoch == spool.epoch
            assert script.facts == [{"os.name": "x"}]
            fill(spool, 1)
            delivery.wake()
            await until(lambda: spool.pending() == 0)
            fill(spool, 1, OTHER_LAYOUT)
            delivery.wake()
            await until(lambda: spool.pending() == 0)
            delivery.set_facts({"os.name": "y"})
            await until(lambda: len(script.facts) == 2)
            assert script.layouts == [LAYOUT, OTHER_LAYOUT]
            assert script.batches[3:] == [[11], [12]]
            assert len(script.hellos) == 1

    run(test)


def test_a_batch_stays_below_the_size_the_collector_reads() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(max_message_bytes=400)
        fill(spool, 30)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == list(range(1, 31))
        assert max(map(len, script.batches)) < 400 / 30

    run(test)


def test_welcome_says_where_to_resume() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(committed_seq=7)
        fill(spool, 10)
        spool.sent_seq = 10  # as after a restart, when nobody knows what was sent
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert script.batches == [[8, 9, 10]]

    run(test)


def test_a_collector_that_knows_more_than_the_spool_gets_a_new_epoch() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(committed_seq=50)
        fill(spool, 3)
        first = spool.epoch
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert spool.epoch != first
        assert [hello.epoch for hello in script.hellos] == [first, spool.epoch]
        assert list(script.reports) == [(spool.epoch, 1), (spool.epoch, 2), (spool.epoch, 3)]

    run(test)


def test_one_batch_in_flight() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(acks=False, max_batch_reports=2)
        fill(spool, 6)
        async with serving(script) as port, delivering(port, spool) as delivery:
            await until(lambda: script.batches == [[1, 2]])
            delivery.wake()
            await script.say(convert.encode_ack(1))  # covers the batch only in part
            fill(spool, 1)
            delivery.wake()
            for _ in range(20):
                await asyncio.sleep(0)
            assert script.batches == [[1, 2]]
            script.acks = True
            await script.say(convert.encode_ack(2))
            await until(lambda: spool.pending() == 0)
        assert script.batches == [[1, 2], [3, 4], [5, 6], [7]]

    run(test)


def test_a_collector_that_never_acks_is_left_for_a_new_stream() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(acks=False)
        fill(spool, 2)
        async with serving(script) as port, delivering(port, spool, timeouts=Timeouts(5, ack=0.2)):
            await until(lambda: len(script.hellos) == 2)
            assert len(script.batches) == 1, "the first stream committed, Welcome says so"
            await until(lambda: spool.pending() == 0)
            script.acks = True

    run(test)


def test_a_collector_that_never_welcomes_is_left_for_a_new_stream() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(welcomes=False)
        fill(spool, 1)
        async with serving(script) as port, delivering(port, spool, timeouts=Timeouts(welcome=0.2, ack=5)):
            await until(lambda: len(script.hellos) == 2)
            script.welcomes = True
            await until(lambda: spool.pending() == 0)
        assert script.batches == [[1]]

    run(test)


def test_a_silent_peer_is_left() -> None:
    """A port that takes connections and says nothing, as a hung collector or a half-open path does."""

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as accepted:
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            timeouts = Timeouts(welcome=0.2, ack=5)
            async with delivering(listener.getsockname()[1], MemorySpool(), timeouts=timeouts):
                for _ in range(2):
                    connection, _ = await loop.sock_accept(listener)
                    accepted.enter_context(connection)

    run(test)


def test_throttle_extends_the_ack_deadline_for_as_long_as_it_is_repeated() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(acks=False, max_batch_reports=1)
        fill(spool, 2)
        loop = asyncio.get_running_loop()
        async with serving(script) as port, delivering(port, spool, timeouts=Timeouts(5, ack=0.5)):
            await until(lambda: script.batches == [[1]])
            begin = loop.time()
            while loop.time() < begin + 1.5:  # past the ack deadline, three times
                await script.say(convert.encode_throttle(100))
                await asyncio.sleep(0.05)  # the pace at which it is repeated, not a wait
            assert len(script.hellos) == 1
            assert script.batches == [[1]]
            await until(lambda: len(script.hellos) == 2)  # not for longer than it was repeated

    run(test)


def test_an_ack_ends_the_pause() -> None:
    """The collector asks for patience while its database is away, and the Ack says that it is back."""

    async def test() -> None:
        spool, script = MemorySpool(), Script(acks=False, max_batch_reports=1)
        fill(spool, 3)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: script.batches == [[1]])
            await script.say(convert.encode_throttle(200_000))
            script.acks = True
            await script.say(convert.encode_ack(1))
            await until(lambda: spool.pending() == 0)
        assert script.batches == [[1], [2], [3]]
        assert len(script.hellos) == 1

    run(test)


def test_throttle_holds_the_next_batch_back() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script()
        fill(spool, 1)
        loop = asyncio.get_running_loop()
        async with serving(script) as port, delivering(port, spool) as delivery:
            await until(lambda: spool.pending() == 0)
            begin = loop.time()
            await script.say(convert.encode_throttle(300))
            await until(lambda: delivery._stream is not None and delivery._stream._resume_at > 0)
            fill(spool, 1)
            delivery.wake()
            await until(lambda: spool.pending() == 0)
            assert loop.time() >= begin + 0.3
        assert len(script.hellos) == 1

    run(test)


@pytest.mark.parametrize("interval", [100, 11_000, 15_000, 60_000, 3_600_000])
def test_an_idle_connection_is_pinged_within_two_intervals_and_never_too_often(interval: int) -> None:
    options = dict(channel_options(interval))
    ping, patience = options["grpc.keepalive_time_ms"], options["grpc.keepalive_timeout_ms"]
    assert ping > 10_000, "a collector ends connections that ping more often"
    assert ping <= 30_000
    assert patience >= 5_000
    assert ping + patience < 2 * max(interval, 11_000)


@pytest.mark.parametrize("interval", [11_000, 15_000, 24_000])
def test_a_connection_on_which_reports_are_acked_is_not_pinged_between_them(interval: int) -> None:
    """Each ping wakes gRPC's idle threads for seconds, which is most of what an agent costs."""
    assert dict(channel_options(interval))["grpc.keepalive_time_ms"] > 1.2 * interval


def test_what_a_rolled_back_spool_knows_is_not_sent_again(tmp_path: Path) -> None:
    """A disk that lost its last writes, or a restored snapshot: the collector has more than the spool."""

    async def test() -> None:
        before = DiskSpool(tmp_path / "spool.db")
        for number in range(3):
            before.append(0, LAYOUT, (float(number),), ())
        before.note_contact()
        before.close()
        spool, script = DiskSpool(tmp_path / "spool.db"), Script()
        epoch = spool.epoch
        script.committed[epoch] = 5
        # As many new reports as were lost, and more: their numbers alone do not show that they are new.
        for number in range(4):
            spool.append(0, LAYOUT, (10.0 + number,), ())
        async with serving(script) as port, delivering(port, spool):  # type: ignore[arg-type]
            await until(lambda: spool.pending() == 0)
        assert [hello.epoch for hello in script.hellos] == [epoch, spool.epoch]
        assert [r.values[0] for r in script.reports.values()] == [10.0, 11.0, 12.0, 13.0]
        spool.close()

    run(test)


def test_goodbye_is_obeyed_to_the_millisecond() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script()
        fill(spool, 1)
        slow = Backoff(base=1000, cap=1000)
        async with serving(script) as port, delivering(port, spool, backoff=slow):
            await until(lambda: spool.pending() == 0)
            begin = asyncio.get_running_loop().time()
            await script.say(convert.encode_goodbye(300))
            await until(lambda: script.open_streams == 0)
            await until(lambda: len(script.hellos) == 2)
            assert 0.3 <= asyncio.get_running_loop().time() - begin < 2

    run(test)


def test_goodbye_over_and_over_is_no_hot_loop() -> None:
    async def test() -> None:
        script = Script()

        async def dismiss(context: Any) -> None:
            await context.write(convert.encode_goodbye(0))

        script.before_batch = dismiss
        script.acks = False
        delays: list[float] = []

        def draw() -> float:
            delays.append(1.0)
            return 1.0

        spool = MemorySpool()
        fill(spool, 1)
        script.committed_seq = 0
        async with serving(script) as port, delivering(port, spool, draw=draw, backoff=Backoff(0.01, 0.2)):
            await until(lambda: len(script.hellos) >= 2)
        # The first comes back at once, as asked, and may have sent its batch again by now.
        assert 1 <= len(script.batches) <= len(script.hellos)

        script = Script(welcomes=False)

        async def dismissing(_: object, context: Any) -> None:
            script.hellos.append(convert.decode_hello((await context.read()).hello))
            await context.write(convert.encode_goodbye(0))
            await context.read()

        script.Stream = dismissing  # type: ignore[method-assign]
        begin = asyncio.get_running_loop().time()
        async with serving(script) as port, delivering(port, spool, draw=draw, backoff=Backoff(0.02, 0.2)):
            await until(lambda: len(script.hellos) == 5)
        assert asyncio.get_running_loop().time() - begin >= 0.02 + 0.02 + 0.04

    run(test)


def test_a_poisoned_report_is_dropped_alone_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        def refuse(report: Report) -> str:
            return "values out of this world" if 666.0 in report.values else ""

        spool, script = MemorySpool(), Script(refuse_report=refuse)
        fill(spool, 3)
        spool.append(0, LAYOUT, (666.0,), ())
        fill(spool, 2)
        async with serving(script) as port, delivering(port, spool) as delivery:
            delivery.set_facts({"os.name": "x"})
            await until(lambda: spool.pending() == 0)
            assert not delivery.cautious
            assert delivery.facts is not None
            fill(spool, 2)
            delivery.wake()
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == [1, 2, 3, 5, 6, 7, 8]
        assert [report.dropped for report in script.reports.values()] == [0, 0, 0, 0, 0, 1, 0]
        assert "report 4 dropped" in caplog.text
        assert "values out of this world" in caplog.text

    run(test)


def test_refused_facts_drop_no_report(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(refuse_facts=True)
        fill(spool, 3)
        async with serving(script) as port, delivering(port, spool) as delivery:
            delivery.set_facts({"os.name": "bad"})
            await until(lambda: spool.pending() == 0)
            await until(lambda: delivery.facts is None)
            script.refuse_facts = False
            delivery.set_facts({"os.name": "bad"})
            delivery.set_facts({"os.name": "good"})
            await until(lambda: script.facts == [{"os.name": "good"}])
        assert script.seqs() == [1, 2, 3]
        assert "the facts are not sent again" in caplog.text

    run(test)


def test_a_report_too_large_for_any_message_is_dropped() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(max_message_bytes=500)
        wide = Layout((CheckLayout(CheckKey("w"), tuple(Measurement(f"m{i}", "1") for i in range(100))),))
        fill(spool, 1)
        spool.append(0, wide, (0.0,) * 100, ())
        fill(spool, 1)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == [1, 3]

    run(test)


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.ALREADY_EXISTS],
)
def test_a_refused_host_keeps_its_spool_and_says_so_once(
    code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(refuse_hello=(code, "who are you?"))
        fill(spool, 2)
        async with serving(script) as port, delivering(port, spool, refused_delay=0.05):
            await until(lambda: len(script.hellos) >= 4)
            assert spool.pending() == 2
            script.refuse_hello = None
            await until(lambda: spool.pending() == 0)

    caplog.set_level(logging.INFO)
    run(test)
    assert [r.message for r in caplog.records if "who are you?" in r.message and code.name in r.message][
        1:
    ] == []
    assert "delivering" in caplog.text


def test_an_ack_of_what_was_never_sent_forgets_nothing() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(acks=False)
        fill(spool, 1)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: script.batches == [[1]])
            script.committed.clear()
            fill(spool, 1)
            await script.say(convert.encode_ack(2))
            await until(lambda: len(script.hellos) == 2)
            assert spool.pending() == 2

    run(test)


def test_over_restarts_of_the_collector_every_report_arrives_once() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(max_batch_reports=3)
        delivered = 0
        async with serving(script) as port:
            pass
        async with delivering(port, spool) as delivery:
            for round_ in range(4):
                async with serving(script, port):
                    goal = (round_ + 1) * 20

                    def append_and_check(goal: int = goal) -> bool:
                        if spool.last_seq < goal:
                            fill(spool, 1)
                            delivery.wake()
                        return len(script.reports) >= goal - 5

                    await until(append_and_check)
                delivered = len(script.reports)
            fill(spool, 5)
            async with serving(script, port):
                await until(lambda: spool.pending() == 0)
        assert delivered > 0
        assert script.seqs() == list(range(1, spool.last_seq + 1))
        assert [r.values[0] for r in script.reports.values()] == list(range(spool.last_seq))

    run(test)


def test_as_many_tries_as_an_outage_of_hours_takes_leave_nothing_behind() -> None:
    """In the C library neither: threads, descriptors, and the memory that the kernel counts."""

    async def test() -> None:
        tries = 0

        def draw() -> float:
            nonlocal tries
            tries += 1
            return 1.0

        def used() -> tuple[int, int, int]:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            threads, files = (len(list(Path(f"/proc/self/{of}").iterdir())) for of in ("task", "fd"))
            return pages * 4096, threads, files

        async with serving(Script()) as port:
            pass
        spool = MemorySpool()
        fill(spool, 100)
        async with delivering(port, spool, draw=draw, backoff=Backoff(0.001, 0.001)):
            await until(lambda: tries > 150)
            before = used()
            await until(lambda: tries > 600, seconds=25)
            memory, threads, files = (now - then for now, then in zip(used(), before, strict=True))
        assert memory < 8 << 20
        assert threads < 20
        assert files < 40
        assert spool.pending() == 100

    run(test)


def test_cancelling_ends_it_at_once_whatever_it_waits_for() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        for script in (Script(welcomes=False), Script(acks=False), Script()):
            spool = MemorySpool()
            fill(spool, 1)
            async with serving(script) as port:
                async with delivering(port, spool):
                    await until(lambda script=script: len(script.hellos) == 1)  # type: ignore[misc]
                    begin = loop.time()
                assert loop.time() - begin < 1
                await until(lambda script=script: script.open_streams == 0)  # type: ignore[misc]

    run(test)


def test_missing_values_travel() -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script()
        spool.append(0, LAYOUT, (math.nan,), ())
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert math.isnan(script.reports[spool.epoch, 1].values[0])

    run(test)


def test_what_the_disk_garbled_is_dropped_alone(tmp_path: Path) -> None:
    async def test() -> None:
        spool, script = DiskSpool(tmp_path / "spool.db"), Script()
        for number in range(5):
            spool.append(0, LAYOUT, (float(number),), ())
        with sqlite3.connect(tmp_path / "spool.db") as other:
            other.execute("UPDATE report SET payload = x'ffffff' WHERE seq = 3")
        other.close()
        async with serving(script) as port, delivering(port, spool) as delivery:  # type: ignore[arg-type]
            await until(lambda: spool.pending() == 0)
            spool.append(0, LAYOUT, (5.0,), ())
            delivery.wake()
            await until(lambda: spool.pending() == 0)
        spool.close()
        assert [(r.seq, r.dropped) for r in script.reports.values()] == [
            (1, 0),
            (2, 0),
            (4, 0),
            (5, 0),
            (6, 1),
        ]

    run(test)


def test_a_failed_try_is_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a stream must not go on connecting, collected or not."""
    eager = dict(channel._CHANNEL_OPTIONS) | {
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 100,
    }
    monkeypatch.setattr(channel, "_CHANNEL_OPTIONS", tuple(eager.items()))

    async def test() -> None:
        connections = 0

        def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        gc.collect()
        gc.disable()
        try:
            with mock.patch("agent.delivery.Stream", side_effect=Stream) as streams:
                async with server, delivering(port, MemorySpool(), backoff=Backoff(0.3, 0.3)):
                    await until(lambda: streams.call_count >= 12)
                    seen = connections, streams.call_count
        finally:
            gc.enable()
        assert seen[0] <= seen[1] + 1

    run(test)
