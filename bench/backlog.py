"""The database is back after an hour: how fast a fleet's backlog drains, and what that costs the collector.

    python -m bench.backlog [--quick] [--json] [--hosts 1000] [--reports 240] [--outage 60] [--repeat 1]

Runs the real collector on a private MariaDB (innodb_flush_log_at_trx_commit=1), and agents that report every
15 s over TLS; see `bench.fleet_agents`, and `bench.fleet` for their certificates. Once all of them report, MariaDB is
stopped. What an hour would leave behind is then put into the agents' spools at once: 240 reports each, 15 s
apart. After a minute, when a time-to-live has passed, MariaDB is started again. Measured from when it answers:
when everything is acked that waited then; when `collector-cli stale` lists nobody any more, and when every host's
stored values are of this minute; the collector's memory all the time, over what it was before the database went
away. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.fleet import Fleet, Progress, certify
from bench.result import Goal, medians, parser, print_result, spreads
from bench.usage import cpu_seconds, memory
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import Site, running_site

_PATIENCE = 150.0
_DRAIN_GOAL, _MEMORY_GOAL, _FRESH_GOAL = 120.0, 64.0, 15.0  # seconds, MB, seconds


class MemoryWatch(threading.Thread):
    """Looks at a process's memory ten times a second."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.start_rss = self.peak = memory(pid).rss
        self._pid = pid
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, memory(self._pid).rss)

    def end(self) -> float:
        """Stop looking; MB of growth."""
        self._over.set()
        self.join()
        return (self.peak - self.start_rss) / 1e6


class Freshness:
    """What an admin sees of the fleet once the database is back, by seconds since then."""

    def __init__(self, site: Site, database: MariadbServer, interval: float):
        self._site = site
        self._database = database
        self._name = database_of(site.database_url)
        self._began = time.monotonic()
        self._recent = int((time.time() - 4 * interval) * 1000)
        self.not_fresh: list[tuple[float, int]] = []
        """How many hosts `collector-cli stale` listed."""
        self.all_current = 0.0
        """Since when every host's stored values have been of this minute; 0: not yet."""

    def look(self, _: Progress) -> None:
        if not self.is_all_fresh:
            listed = len(self._site.json("stale")["hosts"])
            self.not_fresh.append((time.monotonic() - self._began, listed))
        if not self.all_current:
            query = "SELECT COUNT(*) FROM host_seen WHERE measured_at < %s"
            if not self._database.query(query, (self._recent,), self._name)[0][0]:
                self.all_current = time.monotonic() - self._began

    @property
    def is_all_fresh(self) -> bool:
        return bool(self.not_fresh) and not self.not_fresh[-1][1]

    def fresh_after(self, share: float) -> float:
        """Seconds until no more than `share` of the hosts that were listed first were listed still."""
        most = self.not_fresh[0][1] * share
        return next(at for at, listed in self.not_fresh if listed <= most)


def _outage(
    site: Site, database: MariadbServer, pid: int, fleet: Fleet, options: argparse.Namespace
) -> dict[str, Any]:
    """One: from the moment that the database stops to the ack of the last report that waited."""
    watch = MemoryWatch(pid)
    database.stop()
    stopped = time.monotonic()
    # In a long outage, too, each agent waits for the ack of its first report while the others are spooled.
    time.sleep(1.2 * options.interval)
    fleet.tell(f"fill {options.reports}")
    time.sleep(max(0.0, stopped + options.outage - time.monotonic()))
    waiting = fleet.tell("aim last").waiting
    outage_mb = (memory(pid).rss - watch.start_rss) / 1e6
    database.start()
    back = time.monotonic()
    used = {"collector": -cpu_seconds(pid), "database": -cpu_seconds(database.pid), "agents": -fleet.cpu}
    freshness = Freshness(site, database, options.interval)
    progress = fleet.wait(_PATIENCE, freshness.look)
    used["collector"] += cpu_seconds(pid)
    used["database"] += cpu_seconds(database.pid)
    used["agents"] += fleet.cpu
    drained = progress.reached_at[-1] - back
    while not (freshness.is_all_fresh and freshness.all_current):
        if time.monotonic() > back + _PATIENCE:
            raise SystemExit(f"after {_PATIENCE:g} s not every host is fresh")
        freshness.look(progress)
        time.sleep(0.1)
    return {
        "reports": waiting,
        "drained_s": round(drained, 2),
        "reports_per_s": round(waiting / drained),
        "listed_first": freshness.not_fresh[0][1],
        "half_fresh_s": round(freshness.fresh_after(0.5), 2),
        "all_fresh_s": round(freshness.fresh_after(0.0), 2),
        "all_current_s": round(freshness.all_current, 2),
        "start_mb": round(watch.start_rss / 1e6, 1),
        "growth_in_outage_mb": round(outage_mb, 1),
        "growth_mb": round(watch.end(), 1),
        "cpu_us_per_report": {name: round(seconds / waiting * 1e6, 1) for name, seconds in used.items()},
        "streams_ended": sum(at > stopped for at, _ in fleet.endings),
    }


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    shared_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    ttl = 3 * options.interval
    with (
        MariadbServer() as database,
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=shared_memory) as state_dir,
        running_site(database.fresh_database(), Path(folder)) as site,
    ):
        pid = site.collector(tls="on").pid
        with closing(site.open_store()) as store:
            certify(store, site.identity_dir, Path(state_dir), options.hosts, options.interval, ttl)
        with Fleet(
            site.address,
            options.hosts,
            options.processes,
            state_dir=Path(state_dir),
            interval=options.interval,
            ttl=ttl,
            spread=options.hosts / 200,
        ) as fleet:
            fleet.wait(60.0)
            for _ in range(options.repeat):
                time.sleep(3.0)
                rows.append(_outage(site, database, pid, fleet, options))
                if not options.json:
                    _print_row(rows[-1], first=len(rows) == 1)
    return rows


def _print_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        print(
            "reports  drained s  reports/s  half fresh s  all fresh s  all current s  growth MB  in the outage  "
            "CPU us: collector  agents  database"
        )
    cpu = row["cpu_us_per_report"]
    print(
        f"{row['reports']:7} {row['drained_s']:10.1f} {row['reports_per_s']:10} {row['half_fresh_s']:13.1f} "
        f"{row['all_fresh_s']:12.1f} {row['all_current_s']:14.1f} {row['growth_mb']:10.1f} "
        f"{row['growth_in_outage_mb']:14.1f} {cpu['collector']:18.0f} {cpu['agents']:7.0f} {cpu['database']:9.0f}",
        flush=True,
    )


def main() -> None:
    arguments = parser(__doc__, "300 agents, a shorter outage: under 50 s")
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--processes", type=int, default=2, help="that play them")
    arguments.add_argument("--interval", type=float, default=15.0, help="seconds from one report to the next")
    arguments.add_argument("--reports", type=int, default=240, help="that each host spools")
    arguments.add_argument("--outage", type=float, default=60.0, help="seconds without a database")
    arguments.add_argument("--repeat", type=int, default=3)
    options = arguments.parse_args()
    if options.quick:
        options.hosts, options.interval, options.outage, options.repeat = 300, 4.0, 16.0, 1
    rows = _measure(options)
    goals = [
        Goal("seconds until everything is acked", max(row["drained_s"] for row in rows), "<=", _DRAIN_GOAL),
        Goal("MB of growth", max(row["growth_mb"] for row in rows), "<=", _MEMORY_GOAL),
        Goal("seconds until every host is fresh", max(row["all_fresh_s"] for row in rows), "<=", _FRESH_GOAL),
    ]
    names = ("drained_s", "reports_per_s", "all_fresh_s", "all_current_s", "growth_mb")
    figures = [{name: row[name] for name in names} for row in rows]
    print_result(
        "backlog",
        goals,
        hosts=options.hosts,
        median=medians(figures),
        spread=spreads(figures),
        repeats=rows,
    )


if __name__ == "__main__":
    main()
