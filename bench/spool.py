"""What the agent's spool writes to the disk in an hour, beside what it is given to keep.

    python -m bench.spool [--quick] [--json] [--interval 15s] [--hours 4] [--folder DIR]

Plays the reports of some hours as fast as the disk takes them, in three situations: each report acked before
the next (steady), none acked (outage), and the hour in which the backlog of a day leaves (drain). Bytes are
the kernel's own count for the process (proc(5), /proc/PID/io): `written` is what its system calls wrote,
`to disk` what that made dirty in 4 KiB pages. fsyncs are counted by strace, in a run of their own; without
strace they are null. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.spool import DiskSpool
from bench.result import Comparison, Goal, parser, print_result
from bench.simulated_host import LAYOUT, SimulatedHost
from fleetpulse.config import Duration

SITUATIONS = ("steady", "outage", "drain")
_DAY = 86_400
_GOAL = 2_500_000  # bytes to disk in an hour: two blocks of 4 KiB with each report, 60 MB a day


def io_counts() -> tuple[int, int]:
    """Bytes that this process has passed to write calls, and bytes that it has had sent to the disk."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"]), int(counts["write_bytes"])


class _Player:
    """Appends made up reports to a spool in a fresh folder."""

    def __init__(self, folder: Path, interval: float) -> None:
        self.spool = DiskSpool(folder / "spool.db")
        self._host = SimulatedHost(1, 1, story=False)
        self._interval = interval
        self._now = 0.0

    def append(self, *, ack: bool) -> None:
        """One report, an interval after the one before."""
        self._now += self._interval
        values = self._host.values(self._now, 1.7e9 + self._now)
        seq = self.spool.append(int(1e3 * (1.7e9 + self._now)), LAYOUT, values, ())
        if ack:
            self.spool.ack(seq)


def play(situation: str, folder: Path, interval: float, hours: float) -> dict[str, float]:
    """Figures for one hour."""
    player = _Player(folder, interval)
    backlog = int(_DAY / interval) if situation == "drain" else int(3600 / interval)
    for _ in range(backlog):
        player.append(ack=situation == "steady")
    spool = player.spool
    if situation == "drain":
        hours = 1.0
        spool.ack(spool.last_seq)
    count = int(hours * 3600 / interval)
    before, began = io_counts(), time.perf_counter()
    for _ in range(count):
        player.append(ack=situation != "outage")
    seconds = time.perf_counter() - began
    written, to_disk = (after - earlier for after, earlier in zip(io_counts(), before, strict=True))
    player.append(ack=False)
    payload = spool.peek(count + backlog + 1, 1 << 30).reports[-1]
    spool.close()
    return {
        "reports": count,
        "payload_bytes_per_hour": round(len(payload) * count / hours),
        "written_per_hour": round(written / hours),
        "to_disk_per_hour": round(to_disk / hours),
        "append_ms": round(1e3 * seconds / count, 3),
        "file_bytes": (folder / "spool.db").stat().st_size,
    }


def _run_apart(situation: str, options: argparse.Namespace, *tracer: str) -> dict[str, Any]:
    """One situation in a process of its own, so that the kernel's counts are its alone."""
    with tempfile.TemporaryDirectory(prefix="spool-", dir=options.folder) as folder:
        command = [*tracer, sys.executable, "-m", "bench.spool", "--interval", f"{options.interval:g}s"]
        command += ["--hours", str(options.hours), "--play", situation, "--folder", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _fsyncs_per_report(situation: str, options: argparse.Namespace) -> float | None:
    """Counted over the life of a process, from which the same with fewer reports is taken off."""
    if shutil.which("strace") is None:
        return None
    counts = []
    for hours in (options.hours, 2 * options.hours):
        with tempfile.NamedTemporaryFile("r") as log:
            tracer = ("strace", "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", log.name)
            chosen = argparse.Namespace(interval=options.interval, hours=hours, folder=options.folder)
            try:
                figures = _run_apart(situation, chosen, *tracer)
            except subprocess.CalledProcessError:
                return None  # tracing may be forbidden, as in some containers
            calls = re.findall(
                r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s.*f(?:data)?sync$", log.read(), re.MULTILINE
            )
            counts.append((sum(map(int, calls)), figures["reports"]))
    (first, fewer), (second, more) = counts
    return round((second - first) / int(more - fewer), 3)


def main() -> None:
    arguments = parser(__doc__, "two hours, no drain: under 50 s")
    arguments.add_argument(
        "--interval", type=Duration.parse, default=Duration(15), help="between two reports"
    )
    arguments.add_argument("--hours", type=float, default=4.0, help="how many to play and take the mean of")
    arguments.add_argument("--folder", type=Path, help="on the disk to be measured; default: this one")
    arguments.add_argument("--play", choices=SITUATIONS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.play:
        print(json.dumps(play(options.play, options.folder, options.interval, options.hours)))
        return
    if options.folder is None:
        options.folder = Path("var")  # not /tmp: that may be memory
        options.folder.mkdir(exist_ok=True)
    if options.quick:
        options.hours = 2.0
    found: dict[str, dict[str, Any]] = {}
    for situation in SITUATIONS[: 2 if options.quick else 3]:
        found[situation] = _run_apart(situation, options)
        if situation != "drain":
            found[situation]["fsyncs_per_report"] = _fsyncs_per_report(situation, options)
    if not options.json:
        _print_table(found)
    goals = [
        Goal(f"bytes to disk in an hour, {situation}", found[situation]["to_disk_per_hour"], "<=", _GOAL)
        for situation in ("steady", "outage")
    ]
    compared = [
        Comparison(f"bytes to disk in an hour, {situation}", found[situation]["to_disk_per_hour"])
        for situation in found.keys() - {"steady", "outage"}
    ]
    print_result("spool", goals, compared, interval_s=float(options.interval), **found)


def _print_table(found: dict[str, dict[str, Any]]) -> None:
    print("in an hour   payload kB  written kB  to disk kB  fsyncs a report  ms a report  file kB")
    for situation, row in found.items():
        payload, written, to_disk = (
            row[key] / 1e3 for key in ("payload_bytes_per_hour", "written_per_hour", "to_disk_per_hour")
        )
        fsyncs = row.get("fsyncs_per_report")
        print(
            f"{situation:12} {payload:10.0f} {written:11.0f} {to_disk:11.0f} "
            f"{'' if fsyncs is None else fsyncs:>16} {row['append_ms']:12.2f} {row['file_bytes'] / 1e3:8.0f}"
        )


if __name__ == "__main__":
    main()
