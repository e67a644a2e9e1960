"""What it costs to poll machines without an agent, beside the scripts that people write for that.

    python -m bench.crawl [--quick] [--json] [--hosts 1000] [--repeat 3] [--hang 0.05] [--old-only]

In one run, on a private MariaDB (innodb_flush_log_at_trx_commit=1, max_connections=151) and against the same
simulated hosts (`bench.crawl_hosts`): the four designs in `bench.old_scripts`, each for one round, in turns;
then the real collector with a pool of 8, from its start to the end of its first round, in rounds of 30 s, as fast as
it can, and with hosts that hang. It keeps its connections open: only the first round opens them, and by design it
takes 5 s at least, over which the hosts are spread. All other rounds are measured over open connections.

A poll of the collector's is one that the database has, by its numbers; which hosts have answered and when, they say
themselves. CPU time is that of the script with all its processes, from its start to its end as cron runs it, or that
of the whole collector; what the hosts and the database use is shown beside it. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.old_scripts.script import SCHEMA
from bench.result import Comparison, Goal, medians, parser, print_result, spreads
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer
from tests.processes import Program, running_site

_WORKING_DESIGNS = ("connection_each", "pool_of_one")
_DESIGNS = (*_WORKING_DESIGNS, "closing_pool", "inherited_pool")
_POOL = 8
_HELD = "Max_used_connections"
_PATIENCE = 120.0  # seconds for a poll of every host
_TAKEN_IN = 3.0  # seconds from an answer to its commit, at most


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

    def wait_for_everyone(self, after: float = 0.0) -> float:
        """Wait until every host that answers has been polled after that time; when the last one was first polled."""
        began = time.monotonic()
        self.look()
        while missing := [name for name, polls in self.polls.items() if not polls or polls[-1] <= after]:
            if time.monotonic() - began > _PATIENCE:
                raise SystemExit(f"{len(missing)} hosts were not polled, such as {missing[0]}")
            time.sleep(0.1)
            self.look()
        return max(polls[0] for polls in self.polls.values())

    def answered(self, end: float) -> dict[str, int]:
        """How many polls of every host ended until then."""
        return {name: sum(poll <= end for poll in polls) for name, polls in self.polls.items()}

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
    designs: tuple[str, ...] = options.designs
    for design in designs:
        database.query(f"CREATE DATABASE {design}")
        database.query(SCHEMA, database=design)
        database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {design}.* TO script@'127.0.0.1'")
    rounds: dict[str, list[dict[str, Any]]] = {design: [] for design in designs}
    for turn in range(options.repeat):
        for design in (*designs[turn % len(designs) :], *designs[: turn % len(designs)]):
            rounds[design].append(_old_round(design, database, lab, options))
    return [{"name": design, **_middle(rows)} for design, rows in rounds.items()]


def _middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max(rows, key=lambda row: row["failed"])
    figures = {name: median(row[name] for row in rows) for name in rows[0] if name != "errors"}
    return {**figures, **{name: worst[name] for name in ("ok", "failed", "errors")}}


# The collector.


class Ledger:
    """What the database has from a collector. Its own connection is there before the collector has any."""

    def __init__(self, database: MariadbServer, name: str):
        self._connection = database.connect(name)
        self._ask("FLUSH STATUS")

    def close(self) -> None:
        self._connection.close()

    def committed(self) -> dict[str, int]:
        """The reports of every host."""
        said = self._ask("SELECT h.hostname, s.seq FROM host h JOIN host_seen s ON s.host = h.id")
        return {name: int(seq) for name, seq in said}

    def connections(self) -> int:
        """The most that there were at one time beside this one."""
        return int(self._ask(f"SHOW GLOBAL STATUS LIKE '{_HELD}'")[0][1]) - 1

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        cursor.execute(sql)
        return list(cursor.fetchall())


class Mark(NamedTuple):
    """How things stand: when by the monotonic clock, reports committed, and CPU seconds used until then."""

    at: float
    committed: int
    used: dict[str, float]


class Poller:
    """A collector that polls a lab. `started` is when it was, by the monotonic clock."""

    def __init__(self, program: Program, started: float, lab: Lab, ledger: Ledger, database: MariadbServer):
        self.ledger = ledger
        self._program = program
        self._started = started
        self._lab = lab
        self._pids = {"cpu": program.pid, "hosts": lab.pid, "database": database.pid}

    def first_round(self) -> dict[str, float]:
        """From the collector's start until every host that answers has been polled: seconds, and its CPU ms a host."""
        seconds = self._lab.wait_for_everyone() - self._started
        used = cpu_seconds(self._program.pid)
        return {"seconds": seconds, "cpu_ms": used / len(self._lab.polls) * 1000}

    def windows(self, seconds: float, count: int) -> dict[str, Any]:
        """What happens within the next `count` times `seconds`; medians and spreads, CPU time in ms a poll."""
        marks = [self._mark()]
        for number in range(1, count + 1):
            time.sleep(max(0.0, marks[0].at + number * seconds - time.monotonic()))
            marks.append(self._mark())
        uncommitted = self._uncommitted(marks[-1].at)
        between = [_between(*pair) for pair in pairwise(marks)]
        return {
            **medians(between),
            "polls": marks[-1].committed - marks[0].committed,
            "spread": spreads(between),
            "uncommitted": uncommitted,
            **self._gaps(marks[0].at, marks[-1].at),
        }

    def said_at_the_end(self) -> dict[str, Any]:
        """Stop it; how often it has asked, and how often in vain."""
        self._program.stop()
        said: dict[str, Any] = json.loads(self._program.wait_for_log('"asked over SSH"'))
        return said

    def _mark(self) -> Mark:
        used = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        return Mark(time.monotonic(), sum(self.ledger.committed().values()), used)

    def _gaps(self, begin: float, end: float) -> dict[str, Any]:
        """How long hosts have waited for a poll, in seconds."""
        gaps, waits = self._lab.gaps(begin, end), self._lab.waits(end)
        return {"median_gap": median(gaps), "longest_gap": max(*gaps, *waits), "gaps": [*gaps, *waits]}

    def _uncommitted(self, end: float) -> int:
        """Polls that hosts had answered at that time, and that the database still has not some seconds later."""
        self._lab.look()
        answered = self._lab.answered(end)
        deadline = time.monotonic() + _TAKEN_IN
        while True:
            committed = self.ledger.committed()
            missing = sum(max(0, count - committed.get(name, 0)) for name, count in answered.items())
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.1)


def _between(begin: Mark, end: Mark) -> dict[str, float]:
    polls = end.committed - begin.committed
    used = {
        f"{name}_ms": (end.used[name] - before) / max(1, polls) * 1000 for name, before in begin.used.items()
    }
    return {"polls_per_s": polls / (end.at - begin.at), **used}


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
        lab.begin_anew()
        with closing(Ledger(database, name)) as ledger:
            started = time.monotonic()
            yield Poller(site.collector(upgrade=False), started, lab, ledger, database)


def _first_rounds(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> list[dict[str, float]]:
    """Of so many collectors, one after the other, as the scripts run; the one that goes on is another."""
    rows = []
    for _ in range(options.repeat - 1):
        with _poller(database, lab, options.interval) as poller:
            rows.append(poller.first_round())
            poller.said_at_the_end()
    return rows


def _steady(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds at the usual interval, after the first one, in which connections are made."""
    with _poller(database, lab, options.interval) as poller:
        first = poller.first_round()
        # Windows begin while nobody is due, and all is committed: none cuts a round in two.
        time.sleep(options.interval / 3)
        window = poller.windows(options.interval, options.rounds)
        said = poller.said_at_the_end()
        held = poller.ledger.connections()
    gaps = window.pop("gaps")
    return {
        **window,
        "first_round": first,
        "missed": sum(round(gap / options.interval) - 1 for gap in gaps if gap > 1.5 * options.interval),
        "failed": said.get("failed", 0),
        "connections": held,
        "ssh_connections": lab.connections,
        "most_sessions": lab.most_sessions,
    }


def _saturated(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """As fast as it can: more hosts than can be polled within an interval of 1 s, once all connections are open."""
    with _poller(database, lab, 1.0) as poller:
        lab.wait_for_everyone()
        lab.wait_for_everyone(after=time.monotonic())
        window = poller.windows(options.seconds, options.repeat)
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
            cold = _first_rounds(database, lab, options)
            results["steady"] = _steady(database, lab, options)
            cold.append(results["steady"]["first_round"])
            results["first_rounds"] = {**medians(cold), "spread": spreads(cold)}
            tell(_first_line(results["first_rounds"], options.hosts))
            tell(_new_table("all hosts answer", results["steady"], options))
        with Lab(Path(folder, "many"), options.many) as lab:
            results["saturated"] = _saturated(database, lab, options)
            tell(_saturated_line(results["saturated"], options.hosts))
        with Lab(Path(folder, "hanging"), options.hosts, options.hang) as lab:
            results["hanging"] = _steady(database, lab, options)
            tell(_new_table(f"{options.hang:.0%} hang", results["hanging"], options))
    return results


def _best(results: dict[str, Any], figure: str) -> float:
    """The best script's: the best of those that fail no host, if there are any."""
    fewest = min(row["failed"] for row in results["old"])
    return min(float(row[figure]) for row in results["old"] if row["failed"] == fewest)


def _goals(results: dict[str, Any], hosts: int) -> list[Goal]:
    steady, saturated, hanging = results["steady"], results["saturated"], results["hanging"]
    cpu = _best(results, "cpu_ms") / steady["cpu_ms"]
    pace = saturated["polls_per_s"] / (hosts / _best(results, "seconds"))
    uncommitted = sum(row["uncommitted"] for row in (steady, saturated, hanging))
    return [
        Goal("best script's CPU per host / collector's over open connections", round(cpu, 1), ">=", 8),
        Goal("collector's polls/s over open connections / best script's hosts/s", round(pace, 1), ">=", 6),
        Goal("polls failed", steady["failed"] + saturated["failed"], "==", 0),
        Goal("polls answered and not committed", uncommitted, "==", 0),
        Goal("database connections", max(steady["connections"], hanging["connections"]), "<=", _POOL),
        Goal("hosts missed in a round", steady["missed"], "==", 0),
        Goal("hosts missed in a round while others hang", hanging["missed"], "==", 0),
    ]


def _compared(results: dict[str, Any]) -> list[Comparison]:
    """The first round has its collector's start in it, as a script's has."""
    first = results["first_rounds"]
    seconds = _best(results, "seconds") / first["seconds"]
    cpu = _best(results, "cpu_ms") / first["cpu_ms"]
    return [
        Comparison("best script's seconds / collector's start and first round", round(seconds, 2)),
        Comparison("best script's CPU per host / collector's start and first round", round(cpu, 2)),
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
        "first round s": f"{row['first_round']['seconds']:.1f}",
        "median gap s": f"{row['median_gap']:.2f}",
        "longest gap s": f"{row['longest_gap']:.2f}",
    }
    return (
        f"\nThe collector, {options.rounds} rounds of {options.interval:g} s after the first, {title}:\n\n"
        f"| {' | '.join(cells)} |\n|{' ---: |' * len(cells)}\n| {' | '.join(map(str, cells.values()))} |"
    )


def _first_line(row: dict[str, Any], hosts: int) -> str:
    low, high = row["spread"]["seconds"]
    return (
        f"\nFrom the collector's start until all {hosts} hosts were polled once: {row['seconds']:.1f} s "
        f"({low:.1f} to {high:.1f}); CPU {row['cpu_ms']:.2f} ms/host."
    )


def _saturated_line(row: dict[str, Any], hosts: int) -> str:
    seconds = hosts / row["polls_per_s"]
    low, high = row["spread"]["polls_per_s"]
    return (
        f"\nAs fast as it can, over open connections to {row['hosts']} hosts: {row['polls_per_s']:.0f} polls/s "
        f"({low:.0f} to {high:.0f}), so {seconds:.2f} s for {hosts} hosts; CPU {row['cpu_ms']:.2f} ms/poll, failed "
        f"{row['failed']}, longest gap {row['longest_gap']:.1f} s."
    )


def main() -> None:
    arguments = parser(__doc__, "fewer hosts, shorter rounds, only the scripts that fail no host: under 50 s")
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument(
        "--repeat", type=int, default=3, help="rounds of every script, first rounds and busy windows"
    )
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
    options.designs = _DESIGNS
    if options.quick:
        options.designs = _WORKING_DESIGNS
        options.hosts, options.many, options.repeat, options.rounds = 200, 1200, 1, 2
        options.interval, options.seconds, options.patience = 2.0, 3.0, 8.0
    results = _measure(options, lambda text: None if options.json else print(text, flush=True))
    goals = [] if options.old_only else _goals(results, options.hosts)
    compared = [] if options.old_only else _compared(results)
    print_result("crawl", goals, compared, hosts=options.hosts, **results)


if __name__ == "__main__":
    main()
