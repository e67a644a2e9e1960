"""What an agent takes from the machine that it watches, beside other programs for that.

    python -m bench.agent [--quick] [--json] [--seconds 60] [--rounds 3] [--warm-up 30]

All run at the same time and are measured the same way: ours as `fleet-agent run` with the default settings,
enrolled and reporting over TLS every 15 s to a real collector on SQLite; node_exporter, scraped every 15 s,
collectd, netdata and zabbix-agent2 as Debian's packages configure them; and a Python that has imported psutil
and grpc and does nothing, less than which ours cannot have. Figures are the medians of a few rounds, one right
after the other. Memory is the median of what the kernel says of a process and all its children in a round (/proc/PID/smaps_rollup), CPU time is what they used
(clock_getcpuclockid(3)). The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.other_agents import OTHER_AGENTS, OtherAgent
from bench.result import Comparison, Goal, medians, parser, print_result, spreads
from bench.served import Collector, collector
from bench.usage import Memory, family, family_cpu_seconds, family_memory
from tests.ports import free_ports

_PROGRAM = Path(sys.executable).parent / "fleet-agent"
_OURS = "fleet-agent"
_FLOOR = "python, psutil, grpc"
_INTERVAL = 15.0  # seconds between two reports, by default, and between two scrapes
_LOOK = 3.0  # seconds between two looks at the memory
_PATIENCE = 20.0  # seconds for the first report


class Site:
    """A collector, and our agent that reports to it."""

    def __init__(self, served: Collector, folder: Path) -> None:
        self._served = served
        self._folder = folder
        self._database = folder / "fleet.db"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE")}
        self._environ = environ | {"FLEETPULSE_AGENT_STATE_DIR": str(folder / "agent")}
        self._enroll()

    def _enroll(self) -> None:
        token = self._folder / "token"
        token.touch(0o600)
        token.write_text(self._served.ask("token", "create")["token"])
        fingerprint = self._served.ask("ca", "show")["fingerprint"]
        command = [str(_PROGRAM), "enroll", "--collector", self._served.address, "--token-file", str(token)]
        command += ["--enroll-port", self._served.enroll_address.rpartition(":")[2]]
        command += ["--ca-fingerprint", fingerprint]
        subprocess.run(command, env=self._environ, check=True, stdout=subprocess.DEVNULL)

    @contextmanager
    def agent(self) -> Iterator[int]:
        """Its process."""
        with started([str(_PROGRAM), "run"], self._folder / "agent.log", self._environ) as pid:
            yield pid

    def reports(self) -> int:
        """How many the collector has committed."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as database:
            [[count]] = database.execute("SELECT coalesce(sum(seq), 0) FROM host_seen")
        return int(count)

    def wait_for_report(self) -> None:
        """Until the first has been committed."""
        deadline = time.monotonic() + _PATIENCE
        while not self.reports():
            if time.monotonic() > deadline:
                raise SystemExit(f"no report arrives:\n{(self._folder / 'agent.log').read_text()[-4000:]}")
            time.sleep(0.1)


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """All of it in `folder`."""
    url, identity = f"sqlite:///{folder / 'fleet.db'}", str(folder / "identity")
    with collector(url, tls="on", identity_dir=identity) as served:
        yield Site(served, folder)


class _Running(NamedTuple):
    """A process, and the file that has what it said."""

    pid: int
    output: Path


@contextmanager
def started(command: list[str], log: Path, environ: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process, which is gone afterwards with all its children."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield process.pid
        finally:
            members = family(process.pid)[1:]
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)


@contextmanager
def other_agent(agent: OtherAgent, folder: Path) -> Iterator[_Running]:
    """One that is here, scraped if it does nothing else."""
    folder.mkdir()
    folder.chmod(0o755)  # some become another user
    port, _ = free_ports()  # zabbix-agent2 takes none above 32767
    output = folder / "output"
    with started([agent.path, *agent.command(folder, port)], output) as pid, ExitStack() as stack:
        if agent.scraped:
            stack.enter_context(_scraped(f"http://127.0.0.1:{port}/metrics"))
        yield _Running(pid, output)


@contextmanager
def _scraped(url: str) -> Iterator[None]:
    """Fetch `url` every interval."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(_INTERVAL):
            with suppress(OSError), urllib.request.urlopen(url, timeout=_INTERVAL) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Usage(NamedTuple):
    """Of a process and its children."""

    memory: Memory
    cpu_per_minute: float


def watch(pids: Mapping[str, int], seconds: float) -> dict[str, Usage]:
    """What each uses within the next `seconds`."""
    began = time.monotonic()
    before = {name: family_cpu_seconds(pid) for name, pid in pids.items()}
    seen: dict[str, list[Memory]] = {name: [] for name in pids}
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(_LOOK, left))
        for name, pid in pids.items():
            seen[name].append(family_memory(pid))
    minutes = (time.monotonic() - began) / 60
    return {
        name: Usage(
            Memory(*(int(median(sizes)) for sizes in zip(*seen[name], strict=True))),
            (family_cpu_seconds(pid) - before[name]) / minutes,
        )
        for name, pid in pids.items()
    }


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        folder.chmod(0o755)
        site = stack.enter_context(running_site(folder))
        pids = {_OURS: stack.enter_context(site.agent())}
        floor = [sys.executable, "-c", "import psutil, grpc, signal; signal.pause()"]
        pids[_FLOOR] = stack.enter_context(started(floor, folder / "floor.log"))
        others: dict[str, _Running] = {}
        missing: dict[str, str] = {}
        for agent in OTHER_AGENTS:
            if not agent.is_here:
                missing[agent.name] = f"not here; apt-get install {agent.package}"
                continue
            try:
                others[agent.name] = stack.enter_context(other_agent(agent, folder / agent.name))
            except OSError as error:
                missing[agent.name] = f"does not start: {error}"
        pids |= {name: other.pid for name, other in others.items()}
        warm_up = time.monotonic() + options.warm_up
        site.wait_for_report()
        time.sleep(max(0.0, warm_up - time.monotonic()))
        reports = site.reports()
        rounds = [watch(pids, options.seconds) for _ in range(options.rounds)]
        reports = site.reports() - reports
        for name, other in others.items():
            if not all(used[name].memory.rss for used in rounds):
                del pids[name]
                missing[name] = f"does not run: {' '.join(other.output.read_text().split())[-500:]}"
    rows = {name: [_figures(used[name]) for used in rounds] for name in pids}
    return {
        "reports": reports,
        "agents": {name: medians(figures) for name, figures in rows.items()},
        "spread": {name: spreads(figures) for name, figures in rows.items()},
        "missing": missing,
    }


def _figures(usage: Usage) -> dict[str, float]:
    return {
        "rss_mb": round(usage.memory.rss / 1e6, 1),
        "pss_mb": round(usage.memory.pss / 1e6, 1),
        "cpu_s_per_min": round(usage.cpu_per_minute, 4),
    }


def _print_table(results: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"{options.rounds} times {options.seconds:g} s after {options.warm_up:g} s, of ours {results['reports']} reports arrived:\n"
    )
    print(f"{'':22}  RSS MB  PSS MB  CPU s/min (spread)")
    for name, row in results["agents"].items():
        low, high = results["spread"][name]["cpu_s_per_min"]
        print(
            f"{name:22} {row['rss_mb']:7.1f} {row['pss_mb']:7.1f} {row['cpu_s_per_min']:10.3f} ({low:.3f}-{high:.3f})"
        )
    for name, why in results["missing"].items():
        print(f"{name:22}  {why}")


def main() -> None:
    arguments = parser(__doc__, "for a shorter time: under 50 s")
    arguments.add_argument("--seconds", type=float, default=60.0, help="length of a round")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--warm-up", type=float, default=30.0, help="seconds before that")
    options = arguments.parse_args()
    if options.quick:
        options.seconds, options.rounds, options.warm_up = 30.0, 1, 8.0
    results = _measure(options)
    if not results["reports"]:
        raise SystemExit("no report arrived while it was measured")
    if not options.json:
        _print_table(results, options)
    ours = results["agents"][_OURS]
    goals = [
        Goal("agent RSS, MB", ours["rss_mb"], "<=", 40),
        Goal("agent CPU, s/min", ours["cpu_s_per_min"], "<=", 0.06),
    ]
    compared = [
        Comparison(f"agent / {name}: {what}", round(ours[figure] / row[figure], 2))
        for name, row in results["agents"].items()
        if name not in (_OURS, _FLOOR)
        for what, figure in (("RSS", "rss_mb"), ("CPU", "cpu_s_per_min"))
    ]
    print_result("agent", goals, compared, seconds=options.seconds, warm_up_s=options.warm_up, **results)


if __name__ == "__main__":
    main()
