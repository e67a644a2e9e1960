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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.crawl_lab import Lab
from bench.crawl_poller import HELD, POOL, running_poller
from bench.old_scripts.script import SCHEMA
from bench.result import Comparison, Goal, medians, parser, print_result, spreads
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer

_WORKING_DESIGNS = ("connection_each", "pool_of_one")
_DESIGNS = (*_WORKING_DESIGNS, "closing_pool", "inherited_pool")


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
        "connections": database.status(HELD),
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


def _first_rounds(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> list[dict[str, float]]:
    """Of so many collectors, one after the other, as the scripts run; the one that goes on is another."""
    rows = []
    for _ in range(options.repeat - 1):
        with running_poller(database, lab, options.interval) as poller:
            rows.append(poller.first_round())
            poller.said_at_the_end()
    return rows


def _steady(database: MariadbServer, lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds at the usual interval, after the first one, in which connections are made."""
    with running_poller(database, lab, options.interval) as poller:
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
    with running_poller(database, lab, 1.0) as poller:
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
        Goal("database connections", max(steady["connections"], hanging["connections"]), "<=", POOL),
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
