"""Load for the ingest benchmark: many streams, each with one report in flight, or at a given rate. Runs as a process.

`python -m bench.load ADDRESS --streams N --seconds S --change SHARE` prints one JSON object a line:
{"at": "begin"} and {"at": "end"} around the measured window, then the result. With --enroll each stream's
host enrols first and speaks TLS. Latency at a rate is from when a report is due to its Ack, however late it was
sent because the one before waited for its own: a stall counts for all reports that fall due in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import quantiles
from typing import Any

import grpc

from bench.enrolled_host import Enroller, add_enrolment_options
from bench.stream import Host, Stream, connection

_PATIENCE = 120.0  # seconds until all are welcomed, of which 10,000 take some 15


class Window:
    """What is measured: how many reports are acked in it, and how long those take that begin in it.

    Moments are by `time.perf_counter`, in seconds. A report begins when it is due, or when it is sent if that is
    as soon as the last one is acked.
    """

    def __init__(self, streams: int) -> None:
        self.all_welcomed = asyncio.Event()
        self.waited_for = streams
        """How many streams are not welcomed yet."""
        self.acked = 0
        self.latencies: list[float] = []
        """Seconds."""
        self._begin = self._end = math.inf

    def note_welcome(self) -> None:
        self.waited_for -= 1
        if not self.waited_for:
            self.all_welcomed.set()

    def open(self, now: float) -> None:
        self._begin = now

    def close(self, now: float) -> float:
        """End it; how many seconds it was."""
        self._end = now
        return self._end - self._begin

    def is_over(self, moment: float) -> bool:
        return moment >= self._end

    def note(self, begun: float, acked: float) -> None:
        if self._begin <= acked < self._end:
            self.acked += 1
        if self._begin <= begun < self._end:
            self.latencies.append(acked - begun)


async def report_on(stream: Stream, window: Window, interval: float) -> None:
    """Report every `interval` seconds at a phase of its own, or as soon as the last one is acked (0).

    Ends with the last report that begins in the window.
    """
    await stream.open()
    window.note_welcome()
    if interval:
        await window.all_welcomed.wait()  # so that no report is late because others still connect
    begun = time.perf_counter() + stream.host.random.random() * interval
    while True:
        if interval:
            await asyncio.sleep(begun - time.perf_counter())
        if window.is_over(begun):
            return
        await stream.report()
        acked = time.perf_counter()
        window.note(begun, acked)
        begun = begun + interval if interval else acked


async def _streams(arguments: argparse.Namespace) -> list[Stream]:
    numbers = range(arguments.first, arguments.first + arguments.streams)
    enroller = Enroller.from_options(arguments)
    found = []
    for number in numbers:
        host = Host(number, arguments.seed, arguments.change)
        credentials = await _credentials(host, enroller)
        found.append(Stream(connection(arguments.address, credentials), host, echo=arguments.echo))
    return found


async def _credentials(host: Host, enroller: Enroller | None) -> grpc.ChannelCredentials | None:
    if enroller is None:
        return None
    own = await enroller.credentials(host.hello.host_id, host.hello.hostname).load()
    host.hello = replace(host.hello, trust_id=own.trust_id)  # or it would be told whom to trust
    return grpc.ssl_channel_credentials(own.ca_bundle, own.key, own.chain)


async def _wait_for_welcomes(window: Window, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raises SystemExit if some are not welcomed in time, and what a stream raises."""
    welcomed = asyncio.create_task(window.all_welcomed.wait())
    await asyncio.wait([welcomed, *tasks], return_when=asyncio.FIRST_COMPLETED, timeout=_PATIENCE)
    welcomed.cancel()
    _raise_failure(tasks)
    if window.waited_for:
        raise SystemExit(f"{window.waited_for} of {len(tasks)} streams have no Welcome after {_PATIENCE:g} s")


def _raise_failure(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _measure(
    window: Window, tasks: Sequence[asyncio.Task[None]], arguments: argparse.Namespace
) -> float:
    """Warm up, and measure; how many seconds. Those that report end by themselves afterwards."""
    await _wait_for_welcomes(window, tasks)
    await asyncio.sleep(arguments.warm_up)
    _raise_failure(tasks)
    _say(at="begin")
    window.open(time.perf_counter())
    await asyncio.sleep(arguments.seconds)
    seconds = window.close(time.perf_counter())
    _say(at="end")
    await asyncio.gather(*tasks)
    return seconds


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


async def _run(arguments: argparse.Namespace) -> None:
    window = Window(arguments.streams)
    streams = await _streams(arguments)
    interval = arguments.streams / arguments.rate if arguments.rate else 0.0
    tasks = [asyncio.create_task(report_on(stream, window, interval)) for stream in streams]
    seconds = await _measure(window, tasks, arguments)
    for stream in streams:
        await stream.close()
    if arguments.ledger:
        sent = {stream.host.hello.host_id: (stream.host.seq, stream.host.changes) for stream in streams}
        arguments.ledger.write_text(json.dumps(sent), encoding="ascii")
    if len(window.latencies) < 2:
        raise SystemExit(f"{len(window.latencies)} reports in {seconds:g} s: that says nothing")
    cuts = quantiles(window.latencies, n=100)
    _say(at="result", acked=window.acked, seconds=seconds, p50_ms=cuts[49] * 1000, p99_ms=cuts[98] * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first host: another for each load that runs"
    )
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm-up", type=float, default=3)
    parser.add_argument(
        "--rate", type=float, default=0, help="reports a second of all streams; 0: as many as can be"
    )
    parser.add_argument("--change", type=float, default=0.01, help="share of reports that change a state")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--echo", action="store_true", help="the other end sends back what it gets")
    parser.add_argument(
        "--ledger", type=Path, metavar="FILE", help="write each host's last seq, all acked, and its changes"
    )
    add_enrolment_options(parser)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
