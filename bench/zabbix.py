"""What it costs to take in measurements, beside a Zabbix server: values per second of CPU time.

    python -m bench.zabbix [--quick] [--json] [--rounds 2] [--seconds 60] [--also]

Zabbix server 6.0 as Debian packages it, and the real collector, in turns, each on a private MariaDB of its own
of the same kind (innodb_flush_log_at_trx_commit=1, over TCP), each fed in plaintext with 48 values of 1,000 hosts
as fast as it takes them, for a minute after a warm-up. Each has its bounded queue, and what was sent has to be stored.
They do not store the same:

    Zabbix   a row for each value in the history table of its type, kept; hourly trends; no value is judged, for
             it has no triggers
    ours     each host's latest values, in place; check states, and an event for each change of one; 24 of the
             48 values are judged by thresholds; no history of values

So this says what a state of the fleet costs by either design, not which is the better history.
Counted is the CPU time of all processes of the server and of its database, by the kernel's word. Zabbix's is counted
until its cache is empty, ours while reports are acked, which is after the commit. The senders' is shown, not counted:
several zabbix_sender, written in C, with 250 values a connection, as many as one takes, and `bench.load`, written in
Python, with a report a message. Zabbix is configured as it comes, with more trappers and syncers, and bigger caches
(`bench.zabbix_server`). With --also: Zabbix whose values never change, and the same where each item is set to
"discard unchanged with heartbeat"; ours where every report changes a state.
The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from bench.result import Comparison, Goal, parser, print_result
from bench.served import collector, run_load
from bench.usage import cpu_seconds
from bench.zabbix_server import SERIES, discard_unchanged, load_schema, missing_parts, zabbix_server
from tests.mariadb_server import MariadbServer, database_of

_NOT_INSTALLED = 3
# The default of 64 MB would have Zabbix read its history's pages back from disk.
_DATABASE = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M")
_ZABBIX, _OURS = "Zabbix", "ours"


def _senders_cpu() -> float:
    """What the processes started here have used that have ended: within a turn, those that send."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _zabbix(database: MariadbServer, options: argparse.Namespace, *, changing: bool = True) -> dict[str, Any]:
    """One turn of Zabbix."""

    def used() -> list[float]:
        return [time.monotonic(), server.cpu_seconds(), cpu_seconds(database.pid), _senders_cpu()]

    with zabbix_server(database, options.hosts) as server:
        warm = server.feed(options.warm_up, changing=changing)
        before = used()
        fed = server.feed(options.seconds, changing=changing)
        seconds, server_s, database_s, senders_s = (
            end - begin for begin, end in zip(before, used(), strict=True)
        )
        stored = server.stored()
    return {
        "values_per_s": fed.values / seconds,
        "values_per_cpu_s": fed.values / (server_s + database_s),
        "server_us": server_s / fed.values * 1e6,
        "database_us": database_s / fed.values * 1e6,
        "senders_cores": senders_s / seconds,
        "sent": warm.values + fed.values,
        "stored": stored,
        "fullest": fed.fullest,
        "drain_seconds": fed.drain_seconds,
    }


def _ours(database: MariadbServer, options: argparse.Namespace, *, change: float = 0.01) -> dict[str, Any]:
    """One turn of the collector; what is acked is committed."""
    name = database_of(database.fresh_database())
    load = argparse.Namespace(streams=options.hosts, seconds=options.seconds, warm_up=options.warm_up)
    with (
        tempfile.TemporaryDirectory() as folder,
        collector(database.tcp_url(name), identity_dir=folder) as served,
    ):
        pids = {"server": served.pid, "database": database.pid}
        began, before = time.monotonic(), _senders_cpu()
        figures = run_load(served.address, pids, load, "--change", str(change))
        # With the warm-up: the load says nothing of its own use.
        senders_cores = (_senders_cpu() - before) / (time.monotonic() - began)
    per_report = len(SERIES)
    return {
        "values_per_s": figures["reports_per_s"] * per_report,
        "values_per_cpu_s": per_report / (figures["server_us"] + figures["database_us"]) * 1e6,
        "server_us": figures["server_us"] / per_report,
        "database_us": figures["database_us"] / per_report,
        "senders_cores": senders_cores,
        "p50_ms": figures["p50_ms"],
    }


def _measure(options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {_ZABBIX: [], _OURS: []}
    also: dict[str, dict[str, Any]] = {}

    def told(name: str, row: dict[str, Any]) -> dict[str, Any]:
        tell(_line(name, row))
        return row

    # A database each: what one of them still has to flush is not charged to the other.
    with MariadbServer(*_DATABASE) as theirs, MariadbServer(*_DATABASE) as own:
        load_schema(theirs, options.hosts)
        tell(_HEADER)
        for _ in range(options.rounds):
            rounds[_ZABBIX].append(told(_ZABBIX, _zabbix(theirs, options)))
            rounds[_OURS].append(told(_OURS, _ours(own, options)))
        if options.also:
            name = "ours, every report changes a state"
            also[name] = told(name, _ours(own, options, change=1))
            name = "Zabbix, values never change"
            also[name] = told(name, _zabbix(theirs, options, changing=False))
            name = "the same, unchanged are discarded"
            discard_unchanged(theirs)
            also[name] = told(name, _zabbix(theirs, options, changing=False))
    return {"rounds": rounds, "also": also}


_HEADER = """\
Zabbix stores a history row for each value and judges none; ours stores each host's latest values, states and events,
judges half of the values, and keeps no history of them. CPU is the server's and the database's; the senders' apart.

| | values/s | values per CPU s | server us/value | database us/value | senders' cores | waiting at its end |
| --- | ---: | ---: | ---: | ---: | ---: | --- |"""


def _line(name: str, row: dict[str, Any]) -> str:
    if "sent" in row:
        waiting = (
            f"drained in {row['drain_seconds']:.1f} s, cache at most {row['fullest']:.0f} % full; "
            f"{row['stored']:,} rows of {row['sent']:,} values"
        )
    else:
        waiting = f"a report a host, acked after {row['p50_ms']:.0f} ms"
    return (
        f"| {name} | {row['values_per_s']:,.0f} | {row['values_per_cpu_s']:,.0f} | {row['server_us']:.2f} "
        f"| {row['database_us']:.2f} | {row['senders_cores']:.2f} | {waiting} |"
    )


def _goals(rounds: dict[str, list[dict[str, Any]]]) -> list[Goal]:
    middle = {name: median(row["values_per_cpu_s"] for row in rows) for name, rows in rounds.items()}
    lost = sum(row["sent"] - row["stored"] for row in rounds[_ZABBIX])
    return [
        Goal("values per CPU second, ours / Zabbix", round(middle[_OURS] / middle[_ZABBIX], 2), ">=", 1),
        Goal("values that Zabbix was sent and has not stored", lost, "==", 0),
    ]


def _compared(rounds: dict[str, list[dict[str, Any]]]) -> list[Comparison]:
    ratios = [
        own["values_per_cpu_s"] / theirs["values_per_cpu_s"]
        for own, theirs in zip(rounds[_OURS], rounds[_ZABBIX], strict=True)
    ]
    return [
        Comparison("values per CPU second, ours / Zabbix, least of the rounds", round(min(ratios), 2)),
        Comparison("values per CPU second, ours / Zabbix, greatest", round(max(ratios), 2)),
    ]


def main() -> None:
    arguments = parser(__doc__, "one round of a few seconds: under 50 s")
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=60.0, help="how long each is fed in a round")
    arguments.add_argument("--warm-up", type=float, default=10.0)
    arguments.add_argument("--also", action="store_true", help="a round of each variant, without goals")
    options = arguments.parse_args()
    if missing := missing_parts():
        print(missing, file=sys.stderr)
        raise SystemExit(_NOT_INSTALLED)
    if options.quick:
        options.rounds, options.seconds, options.warm_up = 1, 4.0, 2.0
    results = _measure(options, lambda text: None if options.json else print(text, flush=True))
    print_result(
        "zabbix", _goals(results["rounds"]), _compared(results["rounds"]), hosts=options.hosts, **results
    )


if __name__ == "__main__":
    main()
