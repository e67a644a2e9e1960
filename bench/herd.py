"""A whole fleet that comes back at once: the collector is stopped, or killed, and started again.

    python -m bench.herd [--quick] [--json] [--hosts 5000] [--processes 4] [--variants stop,kill] [--repeat 2]

Runs the real collector on a private MariaDB (innodb_flush_log_at_trx_commit=1), and agents that report every
15 s over TLS, each over a connection of its own; see `bench.fleet_agents`, and `bench.fleet` for their certificates.
Once all of them report, the collector is stopped (SIGTERM) or killed (SIGKILL), is away for some seconds, and is
started again at the same address; the variants take turns. Measured from when it listens: when every host has a
report committed by it, whose CPU time that took, and what its streams take up in memory and in open files. At the
end as many streams, up to 1,000, stand in an echo that is tuned as the collector is.

No error is that a stream of the collector before ends, once for each host, by Goodbye or with its connection, nor
that nobody is found while the collector is away. Agents tell late of what began before the collector listened,
because thousands of them share a few processes: a refused connection is excused for as long as an agent waits for a
Welcome, and of all late endings one for each host. Any other end of a stream is an error, whenever it comes.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from agent.stream import Timeouts
from bench.echo import echo_server
from bench.fleet import Fleet, certify
from bench.result import Comparison, Goal, medians, parser, print_result, spreads
from bench.usage import cpu_seconds, memory
from tests.mariadb_server import MariadbServer
from tests.processes import Program, Site, running_site

_AWAY = 2.0  # seconds from the collector's end to its next start
_PATIENCE = 90.0
_ECHO_STREAMS = 1000
_FIRST = 20.0  # seconds over which the agents connect for the first time
_SECONDS_GOAL, _MEMORY_GOAL = 30.0, 60.0  # kB

_GRACE = Timeouts().welcome  # seconds after which a stream that nothing answers has ended in any case
_REPEATED = ("half_back_s", "p99_back_s", "all_back_s", "stream_kb")

_COUNTED = (
    "contested",
    "too_many_hellos",
    "too_many_streams",
    "broken",
    "unauthenticated",
    "no_hello",
    "throttled",
)


class Herd:
    """One collector after another, and the fleet that reports to them."""

    def __init__(self, site: Site, database: MariadbServer, options: argparse.Namespace, state_dir: Path):
        self._site = site
        self._database = database
        self._state_dir = state_dir
        self._interval: float = options.interval
        self.undisturbed: Counter[str] = Counter()
        """Why streams ended while nothing happened to the collector."""
        self._start()
        with closing(site.open_store()) as store:
            certify(
                store, site.identity_dir, state_dir, options.hosts, options.interval, 3 * options.interval
            )
        self.fleet = Fleet(
            site.address,
            options.hosts,
            options.processes,
            state_dir=state_dir,
            interval=options.interval,
            ttl=3 * options.interval,
            spread=options.first,
        )

    def _start(self) -> None:
        self.program: Program = self._site.collector(tls="on", upgrade=not self._site.has_tls)
        self._listening = time.monotonic()
        self._empty = memory(self.program.pid).rss

    def assemble(self) -> dict[str, Any]:
        """The fleet connects for the first time, spread over time."""
        self.fleet.wait(_PATIENCE)
        return self._streams()

    def come_back(self, variant: str) -> dict[str, Any]:
        """What happens when the collector ends and starts again."""
        self._take_undisturbed()
        began = time.monotonic()
        counts: dict[str, int] = {}
        if variant == "stop":
            counts = self._stop()
        else:
            self.program.kill()
        ended = time.monotonic()
        time.sleep(_AWAY)
        self.fleet.tell("aim next")
        self._start()
        pids = {"collector": self.program.pid, "database": self._database.pid}
        used = {name: -cpu_seconds(pid) for name, pid in pids.items()} | {"agents": -self.fleet.cpu}
        progress = self.fleet.wait(_PATIENCE)
        for name, pid in pids.items():
            used[name] += cpu_seconds(pid)
        used["agents"] += self.fleet.cpu
        waits = [at - self._listening for at in progress.reached_at]
        endings, self.fleet.endings = self.fleet.endings, []
        return {
            "variant": variant,
            "ending_s": round(ended - began, 2),
            "away_s": round(self._listening - ended, 2),
            "all_back_s": round(waits[-1], 2),
            "half_back_s": round(median(waits), 2),
            "p99_back_s": round(waits[len(waits) * 99 // 100], 2),
            "cpu_s": {name: round(seconds, 2) for name, seconds in used.items()},
            "watched_s": round(time.monotonic() - self._listening, 2),
            **sorted_out([(at - self._listening, why) for at, why in endings], self.fleet.hosts),
            "counts_before": counts,
            **self._streams(),
        }

    def _take_undisturbed(self) -> None:
        self.fleet.tell()
        self.undisturbed.update(_without_numbers(why) for _, why in self.fleet.endings)
        self.fleet.endings = []

    def _stop(self) -> dict[str, int]:
        """In order; what it has counted."""
        self.program.stop()
        said = json.loads(self.program.wait_for_log('"event": "stopped"'))
        return {name: said[name] for name in _COUNTED if said.get(name)}

    def end(self) -> dict[str, int]:
        """Stop the last collector; what it has counted."""
        self._take_undisturbed()
        self.fleet.stop()
        return self._stop()

    def echo_stream(self, streams: int) -> float:
        """kB that a stream takes up in an echo that speaks TLS and is tuned as the collector is."""
        credentials = next(self._state_dir.iterdir())
        command = [sys.executable, "-m", "bench.idle_streams", "--streams", str(streams)]
        command += ["--state-dir", str(credentials)]
        with echo_server("--tuned", "--identity-dir", str(self._site.identity_dir)) as (address, pid):
            empty = memory(pid).rss
            with subprocess.Popen(
                [*command, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as client:
                assert client.stdout is not None
                if client.stdout.readline().strip() != str(streams):
                    raise SystemExit("the streams to the echo have ended")
                taken = memory(pid).rss - empty
                client.communicate()
        return round(taken / streams / 1000, 1)

    def _streams(self) -> dict[str, Any]:
        """What all streams take up, once each has reported again."""
        time.sleep(self._interval / 3)
        pid = self.program.pid
        taken = memory(pid).rss - self._empty
        return {
            "empty_mb": round(self._empty / 1e6, 1),
            "stream_kb": round(taken / self.fleet.hosts / 1000, 1),
            "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        }


def sorted_out(endings: list[tuple[float, str]], hosts: int) -> dict[str, Any]:
    """How often streams ended in which way, given when (seconds after the collector listens again) and why.

    `late` are those that were excused though the collector listened, `last_late_s` is when the last of them came.
    """
    kinds: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    late = []
    for after, why in endings:
        kind = _kind(why, after)
        kinds[kind] += 1
        if kind == "error":
            errors[_without_numbers(why)] += 1
        elif after > 0:
            late.append(after)
    surplus = {
        "more streams ended than the collector before had": kinds["goodbye"] + kinds["lost"] - hosts,
        "more streams ended late than had begun before": len(late) - hosts,
    }
    errors.update({what: number for what, number in surplus.items() if number > 0})
    return {
        "streams_ended": len(endings),
        **{kind: kinds[kind] for kind in ("goodbye", "lost", "nobody")},
        "late": len(late),
        "last_late_s": round(max(late, default=0.0), 2),
        "errors": dict(errors),
    }


def _kind(why: str, after: float) -> str:
    """What an end `after` seconds after the collector listens is: of a stream that stood, a try in vain, or an error."""
    if why == "the collector said goodbye":
        return "goodbye"
    if why.endswith("Connection refused (UNAVAILABLE)"):
        return "nobody" if after <= _GRACE else "error"
    if "failed to connect" in why or "closed the connection" in why:
        return "nobody" if after <= 0 else "error"
    return "lost" if why.endswith("(UNAVAILABLE)") else "error"


def _without_numbers(why: str) -> str:
    return re.sub(r"\d+", "0", why)


def _repeated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each variant the medians and spreads of what was measured several times."""
    found: dict[str, Any] = {}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [{name: row[name] for name in _REPEATED} for row in rows if row["variant"] == variant]
        found[variant] = {**medians(mine), "spread": spreads(mine)}
    return found


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    shared_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        MariadbServer() as database,
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=shared_memory) as state_dir,
        running_site(database.fresh_database(), Path(folder)) as site,
    ):
        herd = Herd(site, database, options, Path(state_dir))
        with herd.fleet:
            first = herd.assemble()
            for _ in range(options.repeat):
                for variant in options.variants.split(","):
                    rows.append(herd.come_back(variant))
                    if not options.json:
                        _print_row(rows[-1], first=len(rows) == 1)
            counts = herd.end()
        echo = herd.echo_stream(min(options.hosts, _ECHO_STREAMS))
    return {
        "first": first,
        "variants": rows,
        "repeated": _repeated(rows),
        "errors_undisturbed": dict(herd.undisturbed),
        "counts_of_the_last_collector": counts,
        "echo_stream_kb": echo,
    }


def _goals(results: dict[str, Any]) -> list[Goal]:
    """Of the worst repetition."""
    rows, first = results["variants"], results["first"]
    errors = [results["errors_undisturbed"], *(row["errors"] for row in rows)]
    return [
        Goal("seconds until every host is back", max(row["all_back_s"] for row in rows), "<=", _SECONDS_GOAL),
        Goal("errors", sum(sum(found.values()) for found in errors), "==", 0),
        Goal("kB a stream", max(row["stream_kb"] for row in (first, *rows)), "<=", _MEMORY_GOAL),
    ]


def _print_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        print(
            "collector  away s  half back s  all back s  CPU s: its own  agents'  database's  kB/stream  files  late  errors"
        )
    cpu = row["cpu_s"]
    print(
        f"{row['variant']:9} {row['away_s']:7.1f} {row['half_back_s']:12.1f} {row['all_back_s']:11.1f} "
        f"{cpu['collector']:14.1f} {cpu['agents']:8.1f} {cpu['database']:11.1f} {row['stream_kb']:10.1f} "
        f"{row['open_files']:6} {row['late']:5}  {row['errors'] or 0}",
        flush=True,
    )


def _print_repeated(repeated: dict[str, Any]) -> None:
    for variant, figures in repeated.items():
        low, high = figures["spread"]["all_back_s"]
        print(f"{variant}: all are back after {figures['all_back_s']:.1f} s ({low:.1f} to {high:.1f})")


def main() -> None:
    arguments = parser(__doc__, "1,000 agents: under 50 s")
    arguments.add_argument("--hosts", type=int, default=5000)
    arguments.add_argument("--processes", type=int, default=4, help="that play them")
    arguments.add_argument("--interval", type=float, default=15.0, help="seconds from one report to the next")
    arguments.add_argument("--variants", default="stop,kill", help="comma-separated: how the collector ends")
    arguments.add_argument("--repeat", type=int, default=2, help="how often each variant")
    options = arguments.parse_args()
    options.first = _FIRST
    if options.quick:
        options.hosts, options.processes, options.interval, options.first = 1000, 2, 6.0, 3.0
        options.repeat = 1
    results = _measure(options)
    echo = results["echo_stream_kb"]
    if not options.json:
        _print_repeated(results["repeated"])
        print(f"a stream takes up {echo} kB in an echo over TLS that is tuned as the collector is")
    compared = [Comparison("kB a stream in an echo over TLS, tuned alike", echo)]
    print_result("herd", _goals(results), compared, hosts=options.hosts, **results)


if __name__ == "__main__":
    main()
