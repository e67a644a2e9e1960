"""Ack latency of good hosts, with and without somebody who behaves badly beside them.

    python -m bench.flood [--quick] [--json] [--hosts 100] [--attacks flood,garbage] [--seconds 8]

Runs the real collector on a private MariaDB and 100 hosts that report once a second, and in turns nobody
and each of `bench.attackers`. A latency is from the moment a report is due to its ack. The last line
printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import grpc

from bench.attackers import ATTACKS, METHOD
from bench.ingest import collector
from bench.result import Goal, parser, print_result
from bench.simulated_host import LAYOUT
from bench.usage import cpu_seconds, memory
from fleetpulse import convert
from fleetpulse.model import Hello, HostId, Report
from tests.mariadb_server import MariadbServer

_INTERVAL = 1.0  # seconds
_TTL = 3.0
_QUICK = "flood,heavy,garbage,oversized,idle"


class GoodHost:
    """One host that reports once a second and comes back when its stream ends."""

    def __init__(self, address: str, number: int, hosts: int):
        self._address = address
        self._phase = _INTERVAL * number / hosts
        host_id = HostId(str(uuid.uuid5(uuid.NAMESPACE_DNS, f"good-{number}")))
        self._hello = Hello(host_id, f"good-{number}", "m", "b", 1, "1", 1000, 3000)
        self._seq = 0
        self._due = 0.0

    async def run(self) -> None:
        begin = time.monotonic()
        while True:
            try:
                await self._stream(begin)
            except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                print(json.dumps({"at": time.monotonic(), "ended": str(error)[:200]}), flush=True)
                await asyncio.sleep(1)

    async def _stream(self, begin: float) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call: Any = channel.stream_stream(METHOD)()
            await call.write(convert.encode_hello(self._hello).SerializeToString())
            await call.read()
            await call.write(convert.encode_layout(LAYOUT).SerializeToString())
            while True:
                now = time.monotonic()
                if not self._due:
                    self._due = now + (begin + self._phase - now) % _INTERVAL
                    self._seq += 1
                await asyncio.sleep(self._due - now)
                report = Report(self._seq, int(time.time() * 1000), LAYOUT, (0.3,) * LAYOUT.series_count)
                batch = convert.encode_batch([convert.encode_report(report)])
                await call.write(batch.SerializeToString())
                await self._acked(call)
                took = time.monotonic() - self._due
                print(json.dumps({"at": self._due, "ms": took * 1000}), flush=True)
                self._due = 0.0

    async def _acked(self, call: Any) -> None:
        """Wait for the Ack of the report at hand."""
        while True:
            data = await call.read()
            if data is grpc.aio.EOF:
                raise asyncio.InvalidStateError(f"the stream ended: {await call.details()}")
            said = convert.decode_response(convert.StreamResponse.FromString(data))
            if isinstance(said, convert.Ack) and said.seq >= self._seq:
                return


class Watch:
    """Reads what the good hosts print."""

    def __init__(self, process: subprocess.Popen[str]):
        self.lines: list[dict[str, Any]] = []
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def window(self, seconds: float) -> dict[str, float]:
        """What happens to reports that are due within the next `seconds`."""
        begin = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        time.sleep(_TTL)  # in which the last of them should be acked
        mine = [line for line in list(self.lines) if begin <= line["at"] < end]
        latencies = sorted(line["ms"] for line in mine if "ms" in line)
        if not latencies:
            return {"reports": 0, "ended": len(mine), "p50": -1.0, "p99": -1.0, "worst": float(10**9)}
        return {
            "reports": len(latencies),
            "ended": len(mine) - len(latencies),
            "p50": round(latencies[len(latencies) // 2], 1),
            "p99": round(latencies[len(latencies) * 99 // 100], 1),
            "worst": round(latencies[-1], 1),
        }


def _attacked(name: str, address: str, pid: int, watch: Watch, options: argparse.Namespace) -> dict[str, Any]:
    without = watch.window(options.seconds)
    command = [sys.executable, "-m", "bench.attackers", name, "--collector", address]
    with subprocess.Popen(
        [*command, "--seconds", str(options.seconds + 3 + _TTL)], stdout=subprocess.PIPE, text=True
    ) as attacker:
        time.sleep(2)  # until it is in full swing
        used, began = cpu_seconds(pid), time.monotonic()
        during = watch.window(options.seconds)
        share = (cpu_seconds(pid) - used) / (time.monotonic() - began)
        out, _ = attacker.communicate(timeout=120)
    answers = json.loads(out.splitlines()[-1]) if out else {}
    resident = round(memory(pid).rss / 2**20)
    return {
        "attack": name,
        "without": without,
        "with": during,
        "collector_cpu": round(share, 2),
        "collector_mb": resident,
        "answers": {key: count for key, count in answers.items() if key != "attack"},
    }


def _goals(rows: list[dict[str, Any]]) -> list[Goal]:
    late = max(row["with"]["worst"] for row in rows)
    ended = sum(row["with"]["ended"] for row in rows)
    most = max(row["collector_mb"] for row in rows)
    return [
        Goal("worst ack of a good host, ms", late, "<=", _TTL * 1000),
        Goal("streams of good hosts ended", ended, "<=", 0),
        Goal("collector's memory, MB", most, "<=", 512),
    ]


def _print_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        print("attack       without: p50   p99  worst    with: p50   p99  worst  ended   cpu   MB  answers")
    calm, during = row["without"], row["with"]
    print(
        f"{row['attack']:12} {calm['p50']:11.1f} {calm['p99']:6.1f} {calm['worst']:6.1f} {during['p50']:10.1f} "
        f"{during['p99']:6.1f} {during['worst']:6.1f} {during['ended']:5} {row['collector_cpu']:6.2f} "
        f"{row['collector_mb']:4}  {row['answers']}",
        flush=True,
    )


async def _good_hosts(address: str, hosts: int) -> None:
    await asyncio.gather(*[GoodHost(address, number, hosts).run() for number in range(hosts)])


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    command = [sys.executable, "-m", "bench.flood", "--hosts", str(options.hosts), "--good"]
    with (
        MariadbServer() as database,
        collector(database.fresh_database()) as served,
        subprocess.Popen([*command, served.address], stdout=subprocess.PIPE, text=True) as good,
    ):
        try:
            watch = Watch(good)
            time.sleep(4)
            for name in options.attacks.split(","):
                rows.append(_attacked(name, served.address, served.pid, watch, options))
                if not options.json:
                    _print_row(rows[-1], first=len(rows) == 1)
        finally:
            good.kill()
    return rows


def main() -> None:
    arguments = parser(__doc__, "fewer attacks, shorter windows: about a minute")
    arguments.add_argument("--hosts", type=int, default=100)
    arguments.add_argument("--seconds", type=float, default=8.0, help="length of a measured window")
    arguments.add_argument("--attacks", default=",".join(ATTACKS), help="comma-separated")
    arguments.add_argument("--good", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.good:
        asyncio.run(_good_hosts(options.good, options.hosts))
        return
    if options.quick:
        options.attacks, options.seconds = _QUICK, 3.0
    rows = _measure(options)
    print_result("flood", _goals(rows), variants=rows)


if __name__ == "__main__":
    main()
