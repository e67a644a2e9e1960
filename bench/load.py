"""Load for the ingest benchmark: many streams, each with one report in flight, or at a given rate. Runs as a process.

`python -m bench.load ADDRESS --streams N --seconds S --change SHARE` prints one JSON object a line:
{"at": "begin"} and {"at": "end"} around the measured window, then the result. With --enroll each stream's
host enrols first and speaks TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import quantiles
from typing import Any

import grpc

from bench.enrolled_host import Enroller, add_enrolment_options
from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, Hello, HostId, Layout, Measurement, Report
from fleetpulse.v1 import ingest_pb2 as pb

# 12 checks and 48 values, of which 24 are watched by the built-in rules.
_WATCHED = ("system.filesystem.utilization", "system.filesystem.inodes.utilization")
LAYOUT = Layout(
    tuple(
        CheckLayout(
            CheckKey("filesystem", f"/mnt/{number}"),
            (
                Measurement(_WATCHED[0], "1"),
                Measurement(_WATCHED[1], "1"),
                Measurement("system.filesystem.usage", "By"),
                Measurement("system.filesystem.limit", "By"),
            ),
        )
        for number in range(12)
    )
)
METHOD = "/fleetpulse.v1.IngestService/Stream"


class Host:
    """One simulated stream and what it measures."""

    def __init__(self, number: int, seed: int, change: float):
        self.random = random.Random(f"{seed}/{number}")
        self.hello = Hello(
            HostId(str(uuid.uuid5(uuid.NAMESPACE_DNS, f"bench-{number}"))),
            f"bench-{number}",
            "machine",
            "boot",
            # New in every run: what an earlier run sent must not make this one's reports duplicates.
            random.SystemRandom().randrange(1, 2**63),
            "bench",
            15_000,
            45_000,
        )
        self.change = change
        self.seq = 0
        self.changes = 0
        self.full = False

    def messages(self) -> Iterator[pb.StreamRequest]:
        """One report a message, for ever. A changed one moves a disk over or under its threshold."""
        values = [self.random.uniform(0.1, 0.6) for _ in range(LAYOUT.series_count)]
        while True:
            self.seq += 1
            values[self.random.randrange(2, LAYOUT.series_count)] = self.random.uniform(0.1, 0.6)
            if self.random.random() < self.change:
                self.full = not self.full
                self.changes += 1
            values[0] = 0.9 if self.full else 0.3
            report = Report(self.seq, int(time.time() * 1000), LAYOUT, tuple(values))
            yield convert.encode_batch([convert.encode_report(report)])


class Window:
    """Counts what is acked between its beginning and its end."""

    def __init__(self, streams: int) -> None:
        self.all_welcomed = asyncio.Event()
        self._waited_for = streams
        self.is_open = False
        self.is_over = False
        self.acked = 0
        self.latencies: list[float] = []

    def note_welcome(self) -> None:
        self._waited_for -= 1
        if not self._waited_for:
            self.all_welcomed.set()

    def note(self, latency: float) -> None:
        if self.is_open:
            self.acked += 1
            self.latencies.append(latency)


async def _stream(
    channel: grpc.aio.Channel, host: Host, window: Window, interval: float, *, echo: bool
) -> None:
    """Send a report every `interval` seconds at a phase of its own, or as soon as the last one is acked (0)."""
    call = channel.stream_stream(
        METHOD,
        request_serializer=pb.StreamRequest.SerializeToString,
        response_deserializer=None if echo else pb.StreamResponse.FromString,
    )()
    await call.write(convert.encode_hello(host.hello))
    await call.read()
    await call.write(convert.encode_layout(LAYOUT))
    if echo:
        await call.read()
    window.note_welcome()
    due = time.perf_counter() + host.random.random() * interval
    for message in host.messages():
        if interval:
            await asyncio.sleep(due - time.perf_counter())
            due = max(due + interval, time.perf_counter())
        sent = time.perf_counter()
        await call.write(message)
        await _answer(call, host, echo=echo)
        window.note(time.perf_counter() - sent)
        if window.is_over:
            break
    await call.done_writing()


async def _answer(call: Any, host: Host, *, echo: bool) -> None:
    """The report's Ack, or its echo. Whoever is slowed down is told so before."""
    while (said := await call.read()) is not grpc.aio.EOF:
        if echo or said.WhichOneof("message") == "ack":
            return
    raise SystemExit(f"the stream of {host.hello.hostname} ended: {await call.details()}")


async def _channel(address: str, host: Host, enroller: Enroller | None) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    if enroller is None:
        return grpc.aio.insecure_channel(address, options=options)
    own = await enroller.credentials(host.hello.host_id, host.hello.hostname).load()
    host.hello = replace(host.hello, trust_id=own.trust_id)  # or it would be told whom to trust
    credentials = grpc.ssl_channel_credentials(own.ca_bundle, own.key, own.chain)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _run(arguments: argparse.Namespace) -> None:
    window = Window(arguments.streams)
    numbers = range(arguments.first, arguments.first + arguments.streams)
    hosts = [Host(number, arguments.seed, arguments.change) for number in numbers]
    enroller = Enroller.from_options(arguments)
    channels = [await _channel(arguments.address, host, enroller) for host in hosts]
    interval = arguments.streams / arguments.rate if arguments.rate else 0.0
    streams = [
        asyncio.create_task(_stream(channel, host, window, interval, echo=arguments.echo))
        for channel, host in zip(channels, hosts, strict=True)
    ]
    welcomed = asyncio.create_task(window.all_welcomed.wait())
    await asyncio.wait([welcomed, *streams], return_when=asyncio.FIRST_COMPLETED)
    welcomed.cancel()
    await asyncio.sleep(arguments.warm_up)
    failed = [task for task in streams if task.done()]
    for task in failed:
        task.result()
    window.is_open = True
    print(json.dumps({"at": "begin"}), flush=True)
    began = time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    elapsed = time.perf_counter() - began
    window.is_open = False
    print(json.dumps({"at": "end"}), flush=True)
    window.is_over = True
    await asyncio.gather(*streams)
    for channel in channels:
        await channel.close()
    if arguments.ledger:
        sent = {host.hello.host_id: (host.seq, host.changes) for host in hosts}
        arguments.ledger.write_text(json.dumps(sent), encoding="ascii")
    cuts = quantiles(window.latencies, n=100)
    print(
        json.dumps(
            {
                "at": "result",
                "acked": window.acked,
                "seconds": elapsed,
                "p50_ms": cuts[49] * 1000,
                "p99_ms": cuts[98] * 1000,
            }
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
