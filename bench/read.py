"""How long an admin waits for an answer about 100,000 hosts, beside plain SQL for the same question.

    python -m bench.read [--quick] [--json] [--hosts 100000] [--runs 5] [--databases mariadb,sqlite]

Each figure is of whole processes, from start to end, their output into a pipe that is read, after a first one that
does not count: `collector-cli`, and the `mariadb` client with a query that has the same answer (for SQLite, `sqlite3`). 12 checks and 48 values a host, of
which one in a hundred is silent and one in twenty not well; MariaDB with a buffer pool of 256 MiB. Start-up is that
of commands that need no database, and of `stale` where there are no hosts. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.result import Comparison, Goal, parser, print_result
from bench.stored_fleet import fill, keep_listening
from collector.store.schema import upgrade
from collector.store.store import Store, open_store
from collector.store.url import MysqlUrl, SqliteUrl, parse_url
from tests.mariadb_server import MariadbServer

_CLI = str(Path(sys.executable).parent / "collector-cli")
_STALE_SECONDS = 0.5
_SILENT = "(s.received_at = 0 OR s.silence <> 0 OR s.received_at + h.ttl_ms < {now})"
_COLUMNS = (
    "h.hostname, h.host_id, h.address, h.agent_version, h.interval_ms, h.ttl_ms, s.received_at, s.silence, "
    "(SELECT MAX(c.state) FROM check_state c WHERE c.host = h.id AND c.state > 0), "
    "(SELECT GROUP_CONCAT(g.name) FROM host_group g WHERE g.host = h.id)"
)
_HOSTS = "FROM host h JOIN host_seen s ON s.host = h.id"
_WORST = (
    "(SELECT host, MAX(state) AS worst, COUNT(*) AS failing FROM check_state WHERE state > 0 GROUP BY host) c"
)
_SQL = {
    "stale": f"SELECT {_COLUMNS}, d.kind, d.evidence {_HOSTS} LEFT JOIN diagnosis d ON d.host = h.id "
    f"AND d.heard_at = s.received_at WHERE {_SILENT} ORDER BY s.received_at DESC",
    "status": f"SELECT {_SILENT}, COALESCE(c.worst, 0), COUNT(*), MIN(s.received_at), AVG(s.received_at), "
    f"MAX(s.received_at) {_HOSTS} LEFT JOIN {_WORST} ON c.host = h.id GROUP BY 1, 2; "
    f"SELECT h.hostname, c.worst, c.failing {_HOSTS} LEFT JOIN {_WORST} ON c.host = h.id "
    f"ORDER BY {_SILENT} DESC, c.worst DESC, c.failing DESC LIMIT 20",
    "hosts": f"SELECT {_COLUMNS} {_HOSTS} ORDER BY h.hostname",
    "hosts --limit 20": f"SELECT {_COLUMNS} {_HOSTS} ORDER BY h.hostname LIMIT 20",
    "hosts --group rack-007": f"SELECT {_COLUMNS} {_HOSTS} WHERE h.id IN "
    "(SELECT host FROM host_group WHERE name = 'rack-007') ORDER BY h.hostname",
}
_QUESTIONS = (
    "stale",
    "stale --json",
    "status",
    "hosts",
    "hosts --json",
    "hosts --limit 20",
    "hosts --group rack-007",
)
# As monitoring plugins do: warnings and worse are an answer.
_ANSWERS = {"stale": (0, 1, 2), "status": (0, 1, 2), "hosts": (0,)}


class Run(NamedTuple):
    """One process: seconds of wall clock and of CPU, and what it wrote."""

    seconds: float
    cpu: float
    output_bytes: int


def run(command: Sequence[str], environ: dict[str, str] | None = None, answers: Sequence[int] = (0,)) -> Run:
    """Run a program; SystemExit if it ends with anything else than `answers`, or says nothing."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        size = 0
        while part := process.stdout.read(1 << 16):
            size += len(part)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode not in answers or not size:
        raise SystemExit(f"{' '.join(command)} said {size} bytes and ended with {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, size)


def installed_environ(**settings: str) -> dict[str, str]:
    """An environment in which modules are compiled once and kept, as an installation has them."""
    dropped = ("FLEETPULSE", "PYTHONDONTWRITEBYTECODE")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return environ | {"PYTHONPYCACHEPREFIX": str(Path("var/pycache").resolve()), **settings}


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians, and the spread of the seconds."""
    seconds = [one.seconds for one in runs]
    return {
        "seconds": round(median(seconds), 3),
        "spread": [round(min(seconds), 3), round(max(seconds), 3)],
        "cpu_s": round(median(one.cpu for one in runs), 3),
        "output_kb": round(runs[-1].output_bytes / 1e3),
    }


class Database:
    """One to ask, with its own schema."""

    def __init__(self, url: str):
        self.url = url
        self.store: Store = open_store(url, pool_size=1, create=True)
        upgrade(self.store, lambda: int(time.time() * 1000))
        self._environ = installed_environ(FLEETPULSE_DATABASE=url)

    def ask(self, question: str, count: int) -> dict[str, Any]:
        """The admin's command, so many times after a first one."""
        runs = []
        for _ in range(1 + count):
            keep_listening(self.store, int(time.time() * 1000))
            runs.append(run([_CLI, *question.split()], self._environ, _ANSWERS[question.split()[0]]))
        return figures(runs[1:])

    def ask_in_sql(self, question: str, count: int) -> dict[str, Any]:
        """The database's own client, so many times."""
        sql = _SQL[question].format(now=int(time.time() * 1000))
        address = parse_url(self.url)
        if isinstance(address, SqliteUrl):
            command = ["sqlite3", "-readonly", str(address.path), sql]
        else:
            command = _client(address, sql)
        return figures([run(command) for _ in range(1 + count)][1:])


def _client(address: MysqlUrl, sql: str) -> list[str]:
    return [
        *("mariadb", "--no-defaults", f"--user={address.user}", f"--socket={address.unix_socket}"),
        *("--batch", "--quick", f"--execute={sql}", address.database),
    ]


@contextmanager
def _urls(kind: str) -> Iterator[Callable[[], str]]:
    """Addresses of fresh databases of one kind."""
    if kind == "mariadb":
        with MariadbServer("--innodb-buffer-pool-size=256M") as server:
            yield server.fresh_database
        return
    Path("var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="var") as folder:  # not /tmp: that may be memory
        names = (f"sqlite:///{folder}/{number}.db" for number in range(9))
        yield lambda: next(names)


def _measure(kind: str, options: argparse.Namespace, tell: Callable[[str, dict[str, Any]], None]) -> Any:
    found: dict[str, Any] = {"cli": {}, "sql": {}}
    with _urls(kind) as fresh:
        empty = Database(fresh())
        found["empty"] = empty.ask("stale", options.runs)
        tell(f"{kind}: stale, no hosts", found["empty"])
        database = Database(fresh())
        began = time.perf_counter()
        fill(database.store, options.hosts)
        found["fill_seconds"] = round(time.perf_counter() - began, 1)
        for question in _QUESTIONS:
            found["cli"][question] = database.ask(question, options.runs)
            tell(f"{kind}: {question}", found["cli"][question])
            if question in _SQL:
                found["sql"][question] = database.ask_in_sql(question, options.runs)
                tell(f"{kind}: {question}, SQL", found["sql"][question])
        for one in (empty, database):
            one.store.close()
    return found


def _tell(name: str, row: dict[str, Any]) -> None:
    low, high = row["spread"]
    print(
        f"{name:36} {row['seconds']:7.3f} ({low:.3f}-{high:.3f}) {row['cpu_s']:7.3f} {row['output_kb']:8}",
        flush=True,
    )


def _ratio(found: dict[str, Any], question: str) -> float:
    """How much longer the admin's command takes than the database's client."""
    return round(float(found["cli"][question]["seconds"] / found["sql"][question]["seconds"]), 2)


def main() -> None:
    arguments = parser(__doc__, "20,000 hosts, three runs each: under 50 s")
    arguments.add_argument("--hosts", type=int, default=100_000)
    arguments.add_argument("--runs", type=int, default=5, help="of each command")
    arguments.add_argument("--databases", default="mariadb,sqlite", help="comma-separated")
    options = arguments.parse_args()
    if options.quick:
        options.hosts, options.runs = 20_000, 3
    tell: Callable[[str, dict[str, Any]], None] = (lambda _name, _row: None) if options.json else _tell
    if not options.json:
        print(f"{'':36} seconds (spread)        CPU s output kB")
    start = {}
    for question in ("--version", "--help"):
        runs = [run([_CLI, question], installed_environ()) for _ in range(1 + options.runs)]
        start[question] = figures(runs[1:])
        tell(question, start[question])
    results = {kind: _measure(kind, options, tell) for kind in options.databases.split(",")}
    goals = [
        Goal(f"seconds for stale, {kind}", found["cli"]["stale"]["seconds"], "<=", _STALE_SECONDS)
        for kind, found in results.items()
    ]
    compared = [
        Comparison(f"{question}: collector-cli / SQL, {kind}", _ratio(found, question))
        for kind, found in results.items()
        for question in _SQL
    ]
    print_result("read", goals, compared, hosts=options.hosts, runs=options.runs, start=start, **results)


if __name__ == "__main__":
    main()
