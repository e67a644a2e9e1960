"""The load: what a window measures, and what ends a report."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from bench.load import Window, report_on
from bench.stream import Host, Stream, connection
from fleetpulse import convert
from fleetpulse.v1 import ingest_pb2 as pb

STALL = 0.2  # seconds
INTERVAL = 0.02


def open_window() -> Window:
    window = Window(1)
    window.open(10.0)
    return window


def test_a_report_is_counted_where_it_is_acked_and_its_latency_where_it_begins():
    window = open_window()
    window.note(9.0, 11.0)  # begun before
    window.note(11.0, 11.5)
    assert window.close(12.0) == 2.0
    window.note(11.5, 13.0)  # acked afterwards
    window.note(12.5, 13.0)
    assert window.acked == 2
    assert window.latencies == [0.5, 1.5]


class StallingStream:
    """One whose first report takes long; of the others as good as no time. Closes the window after 20."""

    def __init__(self, window: Window):
        self.host = Host(1, seed=1, change=0)
        self._window = window
        self._reports = 0

    async def open(self) -> None:
        self._window.open(time.perf_counter())

    async def report(self) -> None:
        self._reports += 1
        if self._reports == 1:
            await asyncio.sleep(STALL)
        if self._reports == 20:
            self._window.close(time.perf_counter())


def test_at_a_rate_all_reports_that_fall_due_in_a_stall_have_waited():
    window = Window(1)
    stream: Any = StallingStream(window)
    asyncio.run(report_on(stream, window, INTERVAL))
    due_in_the_stall = int(STALL / INTERVAL)
    for number, latency in enumerate(window.latencies[:due_in_the_stall]):
        assert latency > STALL - (number + 1) * INTERVAL


class ThrottlingCollector(grpc.GenericRpcHandler):
    """Asks for a pause before each of its answers."""

    def __init__(self) -> None:
        self.reports = 0

    def service(self, _: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(
            self._serve, pb.StreamRequest.FromString, pb.StreamResponse.SerializeToString
        )

    async def _serve(self, _: Any, context: Any) -> None:
        answers = {
            "hello": pb.StreamResponse(welcome=pb.Welcome()),
            "reports": pb.StreamResponse(ack=pb.Ack()),
        }
        while (message := await context.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            self.reports += kind == "reports"
            if kind in answers:
                await context.write(convert.encode_throttle(1))
                await context.write(answers[kind])


async def _report_twice_to(collector: ThrottlingCollector) -> list[int]:
    """How many reports had arrived after each."""
    server = grpc.aio.server(handlers=[collector])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stream = Stream(connection(f"127.0.0.1:{port}"), Host(1, seed=1, change=0))
    await stream.open()
    seen = []
    for _ in range(2):
        await stream.report()
        seen.append(collector.reports)
    await stream.close()
    await server.stop(None)
    return seen


def test_a_pause_that_is_asked_for_is_no_ack():
    assert asyncio.run(_report_twice_to(ThrottlingCollector())) == [1, 2]
