"""Ack latency of good hosts, with and without somebody who behaves badly beside them.

    python -m bench.flood [--quick] [--json] [--hosts 100] [--attacks flood,garbage] [--seconds 8]

Runs the real collector on a private MariaDB and 100 hosts that report once a second, and in turns nobody
and each of `bench.attackers`, which is let at the processor like everybody else. A host makes its reports when
they are due, whatever became of those before, and sends what waits; a latency is from the moment a report is due to
its ack. One that is not acked within the hosts' time-to-live of 3 s counts as missing; one that is never acked
has a latency of 1e9 ms. What happens is counted from the attack's first moment on. The collector's memory is the
most that it had during an attack. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from bench.attackers import ATTACKS, BATCH, METHOD
from bench.result import Goal, parser, print_result
from bench.served import collector
from bench.simulated_host import LAYOUT
from bench.usage import cpu_seconds
from fleetpulse import convert
from fleetpulse.model import Hello, HostId, Report
from tests.mariadb_server import MariadbServer

_INTERVAL = 1.0  # seconds
_TTL = 3.0
_PATIENCE = 20.0  # seconds for the first report of every host
_NEVER = 1e9  # milliseconds: JSON has no infinity
_QUICK, _QUICK_SECONDS = "flood,heavy,garbage,idle", 3.0
"""At worst 8 s to begin, 6 s of calm and 8.5 s for each attack."""


class Schedule(NamedTuple):
    """When the hosts' reports are due, numbered through: each host's in its turn. By the monotonic clock, in seconds."""

    began_at: float
    hosts: int

    def due_at(self, number: int) -> float:
        """When a report is due."""
        return self.began_at + number * _INTERVAL / self.hosts

    def within(self, begin: float, end: float) -> range:
        """The reports that are due from `begin` on, and before `end`."""
        first, last = (math.ceil((at - self.began_at) * self.hosts / _INTERVAL) for at in (begin, end))
        return range(max(0, first), max(0, last))


class GoodHost:
    """One host that reports once a second and comes back when its stream ends."""

    def __init__(self, address: str, number: int, schedule: Schedule):
        self._address = address
        self._number = number
        self._schedule = schedule
        host_id = HostId(str(uuid.uuid5(uuid.NAMESPACE_DNS, f"good-{number}")))
        self._hello = Hello(host_id, f"good-{number}", "m", "b", 1, "1", 1000, 3000)
        self._acked = 0

    async def run(self) -> None:
        while True:
            try:
                await self._stream()
            except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                print(json.dumps({"at": time.monotonic(), "ended": str(error)[:200]}), flush=True)
                await asyncio.sleep(1)

    async def _stream(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call: Any = channel.stream_stream(METHOD)()
            await call.write(convert.encode_hello(self._hello).SerializeToString())
            await call.read()
            await call.write(convert.encode_layout(LAYOUT).SerializeToString())
            while True:
                await asyncio.sleep(self._schedule.due_at(self._numbered(self._acked + 1)) - time.monotonic())
                await self._deliver(call)

    async def _deliver(self, call: Any) -> None:
        """Send what is due, wait for its Ack, and tell how long it took."""
        seqs = range(self._acked + 1, self._newest() + 1)[:BATCH]
        made = [Report(seq, int(time.time() * 1000), LAYOUT, (0.3,) * LAYOUT.series_count) for seq in seqs]
        await call.write(convert.encode_batch(map(convert.encode_report, made)).SerializeToString())
        await self._wait_for_ack(call, seqs[-1])
        now = time.monotonic()
        for number in map(self._numbered, seqs):
            took = now - self._schedule.due_at(number)
            print(json.dumps({"number": number, "ms": took * 1000}), flush=True)
        self._acked = seqs[-1]

    def _newest(self) -> int:
        """The last report that is due by now, the one that was waited for at least."""
        seq, now = self._acked + 1, time.monotonic()
        while self._schedule.due_at(self._numbered(seq + 1)) <= now:
            seq += 1
        return seq

    def _numbered(self, seq: int) -> int:
        return self._number + (seq - 1) * self._schedule.hosts

    async def _wait_for_ack(self, call: Any, seq: int) -> None:
        while True:
            data = await call.read()
            if data is grpc.aio.EOF:
                raise asyncio.InvalidStateError(f"the stream ended: {await call.details()}")
            said = convert.decode_response(convert.StreamResponse.FromString(data))
            if isinstance(said, convert.Ack) and said.seq >= seq:
                return


class Watch:
    """Reads what the good hosts print."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stdout is not None
        self._lines = process.stdout
        self.schedule = Schedule(**json.loads(self._lines.readline()))
        self.took: dict[int, float] = {}
        """Milliseconds until a report was acked, by its number."""
        self.endings: list[float] = []
        """When streams ended."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._lines:
            said = json.loads(line)
            if "ended" in said:
                self.endings.append(said["at"])
            else:
                self.took[said["number"]] = said["ms"]

    def wait_for_everyone(self) -> None:
        """Until every host has had a report acked."""
        if not self._acked(range(self.schedule.hosts), time.monotonic() + _PATIENCE):
            raise SystemExit("some of the good hosts were never acked a report")

    def window(self, seconds: float) -> dict[str, float]:
        """What happens to reports that are due within the next `seconds`."""
        begin = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        due = self.schedule.within(begin, end)
        self._acked(due, end + _TTL)
        ended = sum(at >= begin for at in list(self.endings))
        return {**latencies([self.took.get(number, _NEVER) for number in due]), "ended": ended}

    def _acked(self, numbers: range, deadline: float) -> bool:
        """Whether these reports are all acked; waits for it until the deadline."""
        while not all(number in self.took for number in numbers):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def latencies(took: list[float]) -> dict[str, float]:
    """Of so many reports that were due: how many were acked late or never, and percentiles in milliseconds."""
    ordered = sorted(took)
    return {
        "due": len(ordered),
        "missing": sum(ms > _TTL * 1000 for ms in ordered),
        "p50": round(ordered[len(ordered) // 2], 1),
        "p99": round(ordered[len(ordered) * 99 // 100], 1),
        "worst": round(ordered[-1], 1),
    }


def _forget_peak(pid: int) -> None:
    """Have the kernel begin anew with VmHWM; proc(5), clear_refs."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _peak(pid: int) -> int:
    """The most that a process has had resident since then, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    [size] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return round(int(size) / 1024)


def _attacked(name: str, address: str, pid: int, watch: Watch, seconds: float) -> dict[str, Any]:
    """What happens beside one attacker, from its first moment on."""
    command = [sys.executable, "-m", "bench.attackers", name, "--collector", address, "--nice", "0"]
    command += ["--seconds", str(seconds + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdout is not None
        attacker.stdout.readline()  # it begins
        _forget_peak(pid)
        used, began = cpu_seconds(pid), time.monotonic()
        during = watch.window(seconds)
        share = (cpu_seconds(pid) - used) / (time.monotonic() - began)
        out, _ = attacker.communicate(timeout=120)
    if attacker.returncode != 0 or not out:
        raise SystemExit(f"the attacker {name} ended with {attacker.returncode}")
    answers = json.loads(out.splitlines()[-1])
    return {
        "attack": name,
        "with": during,
        "collector_cpu": round(share, 2),
        "collector_mb": _peak(pid),
        "answers": {key: count for key, count in answers.items() if key != "attack"},
    }


def _goals(rows: list[dict[str, Any]]) -> list[Goal]:
    late = max(row["with"]["worst"] for row in rows)
    missing = sum(row["with"]["missing"] for row in rows)
    ended = sum(row["with"]["ended"] for row in rows)
    most = max(row["collector_mb"] for row in rows)
    return [
        Goal("worst ack of a good host, ms", late, "<=", _TTL * 1000),
        Goal(f"reports of good hosts not acked within {_TTL:g} s", missing, "==", 0),
        Goal("streams of good hosts ended", ended, "<=", 0),
        Goal("collector's memory at most, MB", most, "<=", 512),
    ]


def _print_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        print(
            "attack       without: p50   p99  worst    with: p50   p99  worst  due  missing  ended   cpu   MB  answers"
        )
    calm, during = row["without"], row["with"]
    print(
        f"{row['attack']:12} {calm['p50']:11.1f} {calm['p99']:6.1f} {calm['worst']:6.1f} {during['p50']:10.1f} "
        f"{during['p99']:6.1f} {during['worst']:6.1f} {during['due']:4} {during['missing']:8} {during['ended']:6} "
        f"{row['collector_cpu']:5.2f} {row['collector_mb']:4}  {row['answers']}",
        flush=True,
    )


async def _good_hosts(address: str, hosts: int) -> None:
    schedule = Schedule(time.monotonic(), hosts)
    print(json.dumps(schedule._asdict()), flush=True)
    await asyncio.gather(*[GoodHost(address, number, schedule).run() for number in range(hosts)])


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "bench.flood", "--hosts", str(options.hosts), "--good"]
    with (
        MariadbServer() as database,
        collector(database.fresh_database()) as served,
        subprocess.Popen([*command, served.address], stdout=subprocess.PIPE, text=True) as good,
    ):
        try:
            watch = Watch(good)
            watch.wait_for_everyone()
            return _in_turns(served.address, served.pid, watch, options)
        finally:
            good.kill()


def _in_turns(address: str, pid: int, watch: Watch, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Nobody and each attacker; if it has to be quick, one calm window for all of them."""
    rows: list[dict[str, Any]] = []
    calm: dict[str, float] = {}
    for name in options.attacks.split(","):
        if not (calm and options.quick):
            calm = watch.window(options.seconds)
        rows.append({"without": calm, **_attacked(name, address, pid, watch, options.seconds)})
        if not options.json:
            _print_row(rows[-1], first=len(rows) == 1)
    return rows


def main() -> None:
    arguments = parser(__doc__, "fewer attacks, shorter windows, one calm one: under 50 s")
    arguments.add_argument("--hosts", type=int, default=100)
    arguments.add_argument("--seconds", type=float, default=8.0, help="length of a measured window")
    arguments.add_argument("--attacks", default=",".join(ATTACKS), help="comma-separated")
    arguments.add_argument("--good", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.good:
        asyncio.run(_good_hosts(options.good, options.hosts))
        return
    if options.quick:
        options.attacks, options.seconds = _QUICK, _QUICK_SECONDS
    rows = _measure(options)
    print_result("flood", _goals(rows), variants=rows)


if __name__ == "__main__":
    main()
