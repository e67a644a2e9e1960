"""What it costs to poll machines without an agent, beside the scripts that people write for that.

    python -m bench.crawl [--quick] [--json] [--hosts 1000] [--repeat 3] [--hang 0.05] [--old-only]

In one run, on a private MariaDB (innodb_flush_log_at_trx_commit=1, max_connections=151) and against the same
simulated hosts (`bench.crawl_hosts`): the four designs in `bench.old_scripts`, each for one round, in turns;
then the real collector with a pool of 8, in rounds of 30 s, as fast as it can, and with hosts that hang.
CPU time is that of the script with all its processes, from its start to its end as cron runs it, or that of
the whole collector; what the hosts and the database use is shown beside it. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.old_scripts.script import SCHEMA
from bench.result import Goal, parser, print_result
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer
from tests.processes import Program, running_site

_DESIGNS = ("connection_each", "pool_of_one", "closing_pool", "inherited_pool")
_POOL = 8
_HELD = "Max_used_connections"
_PATIENCE = 120.0  # seconds for the first poll of every host


class Lab:
    """The simulated hosts, in a process of their own."""

    def __init__(self, folder: Path, hosts: int, hang: float = 0.0):
        folder.mkdir()
        self.folder = folder
        command = [sys.executable, "-m", "bench.crawl_hosts", "--folder", str(folder)]
        command += ["--hosts", str(hosts), "--hang", str(hang)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.polls: dict[str, list[float]] = {}
        """When each host that answers did so, by the monotonic clock."""
        self.hanging = frozenset(self._line()["hanging"])
        self.connections = 0
        self.most_sessions = 0

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def look(self) -> None:
        """See what the hosts have seen."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        for name, seen in self._line().items():
            if name not in self.hanging:
                self.polls.setdefault(name, []).extend(seen["polls"])
            self.connections += seen["connections"]
            self.most_sessions = max(self.most_sessions, seen["most_sessions"])

    def begin_anew(self) -> None:
        """Forget what was seen so far."""
        self.look()
        self.polls = {name: [] for name in self.polls}
        self.connections = self.most_sessions = 0

    def wait_for_everyone(self) -> float:
        """Wait until every host that answers has been polled; seconds."""
        began = time.monotonic()
        self.look()
        while missing := [name for name, polls in self.polls.items() if not polls]:
            if time.monotonic() - began > _PATIENCE:
                raise SystemExit(f"{len(missing)} hosts were never polled, such as {missing[0]}")
            time.sleep(0.1)
            self.look()
        return time.monotonic() - began

    def answered(self, begin: float, end: float) -> int:
        """How many polls ended in that time."""
        return sum(begin < poll <= end for polls in self.polls.values() for poll in polls)

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds from one poll of a host to its next, for those next ones that ended in that time."""
        return [
            after - before
            for polls in self.polls.values()
            for before, after in pairwise(polls)
            if begin < after <= end
        ]

    def waits(self, end: float) -> list[float]:
        """How long every host has been waiting at that time."""
        return [end - max(poll for poll in polls if poll <= end) for polls in self.polls.values()]

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the simulated hosts have ended")
        said: dict[str, Any] = json.loads(line)
        return said


# The scripts.


def _old_round(design: str, database: MariadbServer, lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """One run of a script over all hosts."""
    command = [sys.executable, "-m", f"bench.old_scripts.{design}", "--port", str(database.port)]
    command += ["--inventory", str(lab.folder / "inventory.json"), "--database", design]
    command += ["--patience", str(options.patience)]
    database.query("FLUSH STATUS")
    pids = {"hosts": lab.pid, "database": database.pid}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    figures: dict[str, Any] = json.loads(subprocess.check_output(command))
    used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    lab.look()
    return {
        "ok": figures["ok"],
        "failed": figures["failed"],
        "seconds": figures["seconds"],
        "cpu_ms": figures["cpu_seconds"] / options.hosts * 1000,
        **{f"{name}_ms": seconds / options.hosts * 1000 for name, seconds in used.items()},
        "connections": database.status(_HELD),
        "errors": figures["errors"],
    }


def _old_designs(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The median of every design's rounds, which take turns; what failed, of the worst round."""
    database.query("CREATE USER script@'127.0.0.1'")
    for design in _DESIGNS:
        database.query(f"CREATE DATABASE {design}")
        database.query(SCHEMA, database=design)
        database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {design}.* TO script@'127.0.0.1'")
    rounds: dict[str, list[dict[str, Any]]] = {design: [] for design in _DESIGNS}
    for turn in range(options.repeat):
        for design in (*_DESIGNS[turn % len(_DESIGNS) :], *_DESIGNS[: turn % len(_DESIGNS)]):
            rounds[design].append(_old_round(design, database, lab, options))
    return [{"name": design, **_middle(rows)} for design, rows in rounds.items()]


def _middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max(rows, key=lambda row: row["failed"])
    figures = {name: median(row[name] for row in rows) for name in rows[0] if name != "errors"}
    return {**figures, **{name: worst[name] for name in ("ok", "failed", "errors")}}


# The collector.


class Poller:
    """A collector that polls a lab."""

    def __init__(self, program: Program, lab: Lab, database: MariadbServer):
        self.program = program
        self._lab = lab
        self._database = database

    def window(self, seconds: float) -> dict[str, Any]:
        """What happens within the next `seconds`; CPU time in ms a poll."""
        pids = {"cpu": self.program.pid, "hosts": self._lab.pid, "database": self._database.pid}
        begin = time.monotonic()
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
        end = time.monotonic()
        self._lab.look()
        polls = self._lab.answered(begin, end)
        gaps, waits = self._lab.gaps(begin, end), self._lab.waits(end)
        return {
            "polls": polls,
            "polls_per_s": polls / (end - begin),
            **{f"{name}_ms": spent / max(1, polls) * 1000 for name, spent in used.items()},
            "median_gap": median(gaps),
            "longest_gap": max(*gaps, *waits),
            "gaps": [*gaps, *waits],
        }

    def said_at_the_end(self) -> dict[str, Any]:
        """Stop it; how often it has asked, and how often in vain."""
        self.program.stop()
        said: dict[str, Any] = json.loads(self.program.wait_for_log('"asked over SSH"'))
        return said


@contextmanager
def _poller(database: MariadbServer, lab: Lab, interval: float) -> Iterator[Poller]:
    """A collector, over TCP like the scripts, with an account that may have no more than its pool."""
    name = database.fresh_database().partition("?")[0].rpartition("/")[2]
    url = database.tcp_url(name)
    account = database.account(url, connections=_POOL)
    with running_site(account, lab.folder, url) as site:
        site.upgrade()
        site.settings |= {
            "FLEETPULSE_POOL_SIZE": str(_POOL),
            "FLEETPULSE_SSH_INTERVAL": f"{interval:g}s",
            "FLEETPULSE_SSH_CONCURRENCY": "100",
            "FLEETPULSE_SSH_KEYS": str(lab.folder / "client_key"),
        }
        site.cli("ssh", "import", str(lab.folder / "inventory.json"), check=True)
        site.cli("ssh", "trust", "--known-hosts", str(lab.folder / "known_hosts"), check=True)
        database.query("FLUSH STATUS")
        yield Poller(site.collector(upgrade=False), lab, database)


def _steady(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds at the usual interval, after the first one, in which connections are made."""
    with _poller(database, lab, options.interval) as poller:
        first = lab.wait_for_everyone()
        window = poller.window(options.rounds * options.interval)
        said = poller.said_at_the_end()
        # Nobody but the collector has had a connection since it began.
        held = database.status(_HELD)
    gaps = window.pop("gaps")
    return {
        **window,
        "first_round_s": first,
        "missed": sum(round(gap / options.interval) - 1 for gap in gaps if gap > 1.5 * options.interval),
        "failed": said.get("failed", 0),
        "connections": held,
        "ssh_connections": lab.connections,
        "most_sessions": lab.most_sessions,
    }


def _saturated(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """As fast as it can: more hosts than can be polled within an interval of 1 s."""
    with _poller(database, lab, 1.0) as poller:
        lab.wait_for_everyone()
        window = poller.window(options.seconds)
        said = poller.said_at_the_end()
    window.pop("gaps")
    return {**window, "hosts": len(lab.polls), "failed": said.get("failed", 0)}


# Both.


def _measure(options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, MariadbServer("--max-connections=151") as database:
        with Lab(Path(folder, "lab"), options.hosts) as lab:
            results["old"] = _old_designs(database, lab, options)
            tell(_old_table(results["old"], options.hosts))
            if options.old_only:
                return results
            lab.begin_anew()
            results["steady"] = _steady(database, lab, options)
            tell(_new_table("all hosts answer", results["steady"], options))
        with Lab(Path(folder, "many"), options.many) as lab:
            results["saturated"] = _saturated(database, lab, options)
            tell(_saturated_line(results["saturated"], options.hosts))
        with Lab(Path(folder, "hanging"), options.hosts, options.hang) as lab:
            results["hanging"] = _steady(database, lab, options)
            tell(_new_table(f"{options.hang:.0%} hang", results["hanging"], options))
    return results


def _goals(results: dict[str, Any], hosts: int) -> list[Goal]:
    """The best script is the best of those that fail no host, if there are any."""
    fewest = min(row["failed"] for row in results["old"])
    rows = [row for row in results["old"] if row["failed"] == fewest]
    steady, hanging = results["steady"], results["hanging"]
    cpu = min(row["cpu_ms"] for row in rows) / steady["cpu_ms"]
    round_time = min(row["seconds"] for row in rows) / (hosts / results["saturated"]["polls_per_s"])
    return [
        Goal("best script's CPU per host / collector's", round(cpu, 1), ">=", 8),
        Goal("best script's time for all hosts / collector's", round(round_time, 1), ">=", 6),
        Goal("polls failed", steady["failed"], "==", 0),
        Goal("database connections", max(steady["connections"], hanging["connections"]), "<=", _POOL),
        Goal("hosts missed in a round", steady["missed"], "==", 0),
        Goal("hosts missed in a round while others hang", hanging["missed"], "==", 0),
    ]


def _old_table(rows: list[dict[str, Any]], hosts: int) -> str:
    lines = [
        f"One round over {hosts} hosts, by scripts:\n",
        "| script | hosts polled | failed | seconds | CPU ms/host | hosts' own | database's | connections | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        errors = "; ".join(f"{number} x {text}" for text, number in row["errors"].items())
        lines.append(
            f"| {row['name']} | {row['ok']:.0f} | {row['failed']} | {row['seconds']:.1f} | {row['cpu_ms']:.2f} "
            f"| {row['hosts_ms']:.2f} | {row['database_ms']:.2f} | {row['connections']:.0f} | {errors} |"
        )
    return "\n".join(lines)


def _new_table(title: str, row: dict[str, Any], options: argparse.Namespace) -> str:
    cells = {
        "polls": row["polls"],
        "missed": row["missed"],
        "failed": row["failed"],
        "CPU ms/poll": f"{row['cpu_ms']:.2f}",
        "hosts' own": f"{row['hosts_ms']:.2f}",
        "database's": f"{row['database_ms']:.2f}",
        "connections": row["connections"],
        "first round s": f"{row['first_round_s']:.1f}",
        "median gap s": f"{row['median_gap']:.2f}",
        "longest gap s": f"{row['longest_gap']:.2f}",
    }
    return (
        f"\nThe collector, {options.rounds} rounds of {options.interval:g} s after the first, {title}:\n\n"
        f"| {' | '.join(cells)} |\n|{' ---: |' * len(cells)}\n| {' | '.join(map(str, cells.values()))} |"
    )


def _saturated_line(row: dict[str, Any], hosts: int) -> str:
    seconds = hosts / row["polls_per_s"]
    return (
        f"\nAs fast as it can, over {row['hosts']} hosts: {row['polls_per_s']:.0f} polls/s, so {seconds:.2f} s for "
        f"{hosts} hosts; CPU {row['cpu_ms']:.2f} ms/poll, failed {row['failed']}."
    )


def main() -> None:
    arguments = parser(__doc__, "fewer hosts, shorter rounds: under 50 s")
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--repeat", type=int, default=3, help="rounds of every script")
    arguments.add_argument("--rounds", type=int, default=3, help="rounds of the collector after its first")
    arguments.add_argument("--interval", type=float, default=30.0, help="seconds from one round to the next")
    arguments.add_argument(
        "--many", type=int, default=4000, help="hosts that keep the collector busy all the time"
    )
    arguments.add_argument("--seconds", type=float, default=10.0, help="how long it is measured busy")
    arguments.add_argument(
        "--hang", type=float, default=0.05, metavar="SHARE", help="of the hosts, at the end"
    )
    arguments.add_argument(
        "--patience", type=float, default=20.0, help="seconds without a result after which a script hangs"
    )
    arguments.add_argument("--old-only", action="store_true", help="the scripts alone, without goals")
    options = arguments.parse_args()
    if options.quick:
        options.hosts, options.many, options.repeat, options.rounds = 200, 1200, 1, 2
        options.interval, options.seconds, options.patience = 3.0, 3.0, 8.0
    results = _measure(options, lambda text: None if options.json else print(text, flush=True))
    goals = [] if options.old_only else _goals(results, options.hosts)
    print_result("crawl", goals, hosts=options.hosts, **results)


if __name__ == "__main__":
    main()
