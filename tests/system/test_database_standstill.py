"""A database that stands still: connections stay open, and nobody gets an answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.faults import Pause
from tests.mariadb_server import MariadbServer
from tests.processes import Site, wait_until
from tests.weather import Process, running_house, settle, weather


def test_a_database_that_stands_still_for_longer_than_a_read_may_take(
    mariadb: MariadbServer, tmp_path: Path
) -> None:
    with running_house(mariadb, tmp_path) as house:
        weather(house, Pause(mariadb, house.database), 32)
        settle(house)


def test_sigterm_ends_in_time_while_new_rules_wait_for_a_database_that_says_nothing(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    rules = mariadb_site.folder / "rules.toml"
    rules.write_text("")
    collector = mariadb_site.collector(drain_timeout="1s", rules=str(rules))
    collector.wait_for_log("judging stored values")
    threads = Process.of(collector.pid).threads
    os.kill(mariadb.pid, signal.SIGSTOP)
    try:
        rules.write_text('[[rule]]\ncheck = "memory"\nmeasurement = "system.memory.limit"\ncritical = 1\n')
        for loaded in range(1, 4):
            collector.signal(signal.SIGHUP)
            wait_until(lambda n=loaded: collector.log.count("rules loaded") == n, what="new rules")  # type: ignore[misc]
        assert Process.of(collector.pid).threads <= threads + 1  # impatience makes no more of them
        assert collector.stop(seconds=20) == 0
    finally:
        os.kill(mariadb.pid, signal.SIGCONT)
