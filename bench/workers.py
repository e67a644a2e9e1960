"""Is one collector process the limit? The same load on one, and on several that share a database.

    python -m bench.workers [--quick] [--json] [--streams 1000] [--processes 1,2]

Collectors on ports of their own (a collector does not share its port: the kernel would spread streams at random),
on one private MariaDB (innodb_flush_log_at_trx_commit=1). Each has its share of the streams, and of eight connections
to the database, but no fewer than the four that its two writers and two readers need: three and more processes have
more than eight together. Shown are reports a second, what each party uses of the machine's cores, and what
a report costs it. Afterwards every host's last seq and events are compared with what its stream sent. The load runs
on the same machine: where the cores are all in use with one process, a second one gains nothing, and says nothing
against it; see `cores_used`. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench.result import Goal, medians, parser, print_result, spreads
from bench.served import Collector, collector
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer, database_of

_POOL = 8  # connections to the database, of one process or of two together
_LEAST_POOL = 4  # two writers, two readers
_PATIENCE = 90.0

Said = tuple[int, dict[str, Any]]


class Load:
    """One process of `bench.load`, whose words come into a queue that all share."""

    def __init__(self, number: int, address: str, streams: range, words: queue.Queue[Said], folder: Path):
        self._number = number
        self._words = words
        self._ledger = folder / f"ledger-{number}"
        self._command = [sys.executable, "-m", "bench.load", address, "--ledger", str(self._ledger)]
        self._command += ["--streams", str(len(streams)), "--first", str(streams.start)]

    def start(self, seconds: float, warm_up: float) -> None:
        timing = ["--seconds", str(seconds), "--warm-up", str(warm_up)]
        self._process = subprocess.Popen([*self._command, *timing], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._words.put((self._number, json.loads(line)))
        if self._process.wait() != 0:
            self._words.put((self._number, {"at": "failure"}))

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def sent(self) -> dict[str, tuple[int, int]]:
        """Each host's last seq, and how many changes it sent."""
        return {host: tuple(counts) for host, counts in json.loads(self._ledger.read_text()).items()}


class Run:
    """One measurement: so many collectors, and as many loads."""

    def __init__(self, database: MariadbServer, processes: int, options: argparse.Namespace):
        self._database = database
        self._processes = processes
        self._options = options

    def measure(self) -> dict[str, Any]:
        url = self._database.fresh_database()
        words: queue.Queue[Said] = queue.Queue()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            collectors = [stack.enter_context(self._collector(url, n)) for n in range(self._processes)]
            loads = [
                Load(number, one.address, self._share(number), words, folder)
                for number, one in enumerate(collectors)
            ]
            for load in loads:
                load.start(self._options.seconds, self._options.warm_up)
                stack.callback(load.close)
            figures = self._watch(loads, collectors, words)
            sent = {host: counts for load in loads for host, counts in load.sent().items()}
        return figures | self._compare(database_of(url), sent)

    def _collector(self, url: str, number: int) -> Any:
        pool = pool_of_each(self._processes)
        return collector(url, name=f"bench-{number}", pool_size=pool, writers=2, batch_reports=500)

    def _share(self, number: int) -> range:
        total, parts = self._options.streams, self._processes
        return range(number * total // parts, (number + 1) * total // parts)

    def _watch(
        self, loads: Sequence[Load], collectors: Sequence[Collector], words: queue.Queue[Said]
    ) -> dict[str, Any]:
        """CPU time from when the last load has begun to when the first has ended."""
        pids = {
            "collectors": [one.pid for one in collectors],
            "database": [self._database.pid],
            "load": [load.pid for load in loads],
        }
        _expect(words, "begin", len(loads))
        began, before = time.monotonic(), _used(pids)
        _expect(words, "end", 1)
        seconds, after = time.monotonic() - began, _used(pids)
        _expect(words, "end", len(loads) - 1)
        results = _expect(words, "result", len(loads))
        rate = sum(result["acked"] / result["seconds"] for result in results)
        cores = {name: (after[name] - before[name]) / seconds for name in pids}
        return {
            "reports_per_s": rate,
            "p50_ms": median(result["p50_ms"] for result in results),
            "p99_ms": max(result["p99_ms"] for result in results),
            **{f"{name}_us": used / rate * 1e6 for name, used in cores.items()},
            **{f"{name}_cores": used for name, used in cores.items()},
        }

    def _compare(self, schema: str, sent: dict[str, tuple[int, int]]) -> dict[str, int]:
        """Between what hosts sent and what is stored: reports and events that are missing, or too many."""
        marks = dict(
            self._database.query(
                "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id", database=schema
            )
        )
        events = dict(
            self._database.query(
                "SELECT h.host_id, COUNT(*) FROM event e JOIN host h ON h.id = e.host WHERE e.kind = 'state' "
                "GROUP BY h.host_id",
                database=schema,
            )
        )
        return {
            "reports_off": sum(abs(marks.get(host, 0) - seq) for host, (seq, _) in sent.items())
            + len(marks.keys() - sent.keys()),
            "events_off": sum(abs(events.get(host, 0) - changes) for host, (_, changes) in sent.items()),
        }


def pool_of_each(processes: int) -> int:
    """How many connections to the database each of so many collectors may have."""
    return max(_LEAST_POOL, _POOL // processes)


def _used(pids: dict[str, list[int]]) -> dict[str, float]:
    return {name: sum(map(cpu_seconds, some)) for name, some in pids.items()}


def _expect(words: queue.Queue[Said], what: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many loads have said it; SystemExit if one fails."""
    found: list[dict[str, Any]] = []
    early: list[Said] = []
    deadline = time.monotonic() + _PATIENCE
    while len(found) < count:
        try:
            number, said = words.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise SystemExit(f"a load has not said {what!r} in {_PATIENCE:g} s") from None
        if said["at"] == what:
            found.append(said)
        else:
            early.append((number, said))
        if said["at"] == "failure":
            raise SystemExit(f"load {number} failed before {what!r}")
    for word in early:
        words.put(word)
    return found


def _summary(processes: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spreads; of what is missing or too many the worst of all rounds, not the usual one."""
    used = ("collectors_cores", "database_cores", "load_cores")
    figures = [row | {"cores_used": sum(row[name] for name in used)} for row in rows]
    worst = {name: max(row[name] for row in rows) for name in ("reports_off", "events_off")}
    rounded = {name: round(figure, 2) for name, figure in medians(figures).items()}
    pool = pool_of_each(processes)
    return {"processes": processes, "pool": pool, **rounded, **worst, "spread": spreads(figures)}


def _print_row(row: dict[str, Any]) -> None:
    low, high = row["spread"]["reports_per_s"]
    print(
        f"{row['processes']:9} x {row['pool']} {row['reports_per_s']:9.0f} ({low:.0f}-{high:.0f}) {row['p50_ms']:6.0f} "
        f"{row['p99_ms']:6.0f} "
        + " ".join(
            f"{row[f'{name}_us']:6.0f} {row[f'{name}_cores']:5.2f}"
            for name in ("collectors", "database", "load")
        )
        + f" {row['cores_used']:5.2f}",
        flush=True,
    )


def conclusion(rows: Sequence[dict[str, Any]], cores: int) -> str:
    """What the figures say, in words."""
    one, last = rows[0], rows[-1]
    gain = last["reports_per_s"] / one["reports_per_s"] - 1
    dearer = last["collectors_us"] / one["collectors_us"]
    text = (
        f"One process keeps {one['collectors_cores']:.2f} cores busy, the database {one['database_cores']:.2f}, the "
        f"load {one['load_cores']:.2f}. {last['processes']} processes take in {gain:+.0%}, with "
        f"{last['cores_used']:.2f} of {cores} cores in use by all"
    )
    if last["cores_used"] > 0.9 * cores:
        text += ": there was no room for more"
    return (
        f"{text}. A report then costs the collectors {dearer - 1:+.0%} and the database "
        f"{last['database_us'] / one['database_us'] - 1:+.0%}, so that with a core each they would take in "
        f"{last['processes'] / dearer:.2f} times what one does. A core of the database is enough for "
        f"{last['collectors_us'] / last['database_us']:.1f} of collectors."
    )


def main() -> None:
    arguments = parser(__doc__, "one short round: under 50 s")
    arguments.add_argument("--streams", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=6.0, help="length of a measured window")
    arguments.add_argument("--warm-up", type=float, default=4.0)
    arguments.add_argument("--rounds", type=int, default=3, help="in turns")
    cores = os.cpu_count() or 1
    numbers = sorted({1, 2, *(2**power for power in range(2, 4) if 2**power <= cores // 2)})
    arguments.add_argument(
        "--processes", default=",".join(map(str, numbers)), help="numbers of collectors to compare"
    )
    options = arguments.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.warm_up = 1, 4.0, 3.0
    found: dict[int, list[dict[str, Any]]] = {int(number): [] for number in options.processes.split(",")}
    with MariadbServer() as database:
        for _ in range(options.rounds):
            for processes, rows in found.items():
                rows.append(Run(database, processes, options).measure())
    summaries = [_summary(processes, rows) for processes, rows in found.items()]
    said = conclusion(summaries, cores)
    if not options.json:
        print(
            "processes x pool reports/s (spread) p50 ms p99 ms  collectors us cores  database us cores  load us cores"
            "  cores used"
        )
        for row in summaries:
            _print_row(row)
        print(said)
    goals = [
        Goal(f"reports lost or taken twice with {row['processes']}", row["reports_off"], "==", 0)
        for row in summaries
    ]
    goals += [
        Goal(f"events lost or written twice with {row['processes']}", row["events_off"], "==", 0)
        for row in summaries
    ]
    print_result("workers", goals, cores=cores, variants=summaries, conclusion=said)


if __name__ == "__main__":
    main()
