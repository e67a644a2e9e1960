"""The collector that polls, on a database of its own, and what of it is measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from bench.crawl_lab import Lab
from bench.result import medians, spreads
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import Program, running_site

POOL = 8
HELD = "Max_used_connections"
"""The server's own count of the most that there were at one time."""
_TAKEN_IN = 3.0  # seconds from an answer to its commit, at most


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
        return int(self._ask(f"SHOW GLOBAL STATUS LIKE '{HELD}'")[0][1]) - 1

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
def running_poller(database: MariadbServer, lab: Lab, interval: float) -> Iterator[Poller]:
    """A collector, over TCP like the scripts, with an account that may have no more than its pool."""
    name = database_of(database.fresh_database())
    url = database.tcp_url(name)
    account = database.account(url, connections=POOL)
    with running_site(account, lab.folder, url) as site:
        site.upgrade()
        site.settings |= {
            "FLEETPULSEPOOL_SIZE": str(POOL),
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
