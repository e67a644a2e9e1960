"""Many agents at once on a private MariaDB: nothing lost, never a connection too many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mariadb_server import MariadbServer
from tests.processes import Program, Site, running_site


@pytest.fixture
def counted_site(tmp_path: Path, mariadb: MariadbServer) -> Iterator[tuple[Site, MariadbServer]]:
    """A site on a server of its own, so that its counters are this test's alone."""
    del mariadb  # decides whether servers can be had here at all
    with MariadbServer("--userstat=1") as server, running_site(server.fresh_database(), tmp_path) as site:
        yield site, server


def summary_of(fleet: Program, seconds: float = 150) -> dict[str, int]:
    lines = fleet.output(seconds).splitlines()
    assert lines, fleet.log
    summary: dict[str, int] = json.loads(lines[-1])
    return summary


def rows_changed(server: MariadbServer) -> dict[str, int]:
    """How many rows of each table were ever written, by the server's own count."""
    rows = server.query(
        "SELECT table_name, rows_changed FROM information_schema.table_statistics WHERE table_schema = 't1'"
    )
    return {table: int(count) for table, count in rows}


def test_300_hosts_for_a_minute_never_exceed_the_pool(counted_site):
    site, server = counted_site
    site.upgrade()
    # From here on there is one connection of ours. (A new one may come before the server has done
    # with the one that was closed.)
    ours = server.connect("t1").cursor()
    ours.execute("FLUSH STATUS")
    site.collector(upgrade=False, pool_size="8", writers="4")
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(300, "--interval", "1s", "--seconds", "60", "--ledger", str(ledger))
    summary = summary_of(fleet)
    assert summary["reports_waiting"] == 0
    assert summary["reports_acked"] == summary["reports_made"] >= 300 * 10
    ours.execute("SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id")
    assert dict(ours.fetchall()) == json.loads(ledger.read_text())
    ours.execute("SHOW GLOBAL STATUS WHERE variable_name IN ('Max_used_connections', 'Aborted_connects')")
    counters = {name: int(value) for name, value in ours.fetchall()}
    ours.connection.close()
    assert counters["Max_used_connections"] <= 8 + 1
    assert counters["Aborted_connects"] == 0


def test_1500_agents_that_connect_at_once_are_all_served(mariadb_site, mariadb):
    site = mariadb_site
    site.collector(pool_size="8")
    ledger = site.folder / "ledger.json"
    fleet = site.fleet(1500, "--interval", "10s", "--seconds", "15", "--burst", "--ledger", str(ledger))
    summary = summary_of(fleet)
    marks = json.loads(ledger.read_text())
    assert len(marks) == 1500
    assert min(marks.values()) >= 1
    assert summary["reports_acked"] == summary["reports_made"]


def test_an_unchanged_report_writes_two_rows_and_a_change_one_event(counted_site):
    """Counted by the server: each report of a calm host writes host_seen and host_latest, no more."""
    site, server = counted_site
    site.collector()
    fleet = site.fleet(10, "--interval", "500ms", "--ttl", "60s", "--seconds", "8")
    summary = summary_of(fleet)
    written = rows_changed(server)
    reports = summary["reports_acked"]
    assert reports >= 10 * 4
    # For each host once: the row that Hello made, the epoch that it named, and the first facts.
    assert written["host_seen"] == reports + 30
    assert written["host_latest"] == reports + 10
    events = server.query("SELECT kind, COUNT(*) FROM event GROUP BY kind", database="t1")
    told = dict(events)
    states = server.query("SELECT COUNT(*) FROM check_state", database="t1")[0][0]
    assert written["event"] == sum(told.values())
    assert told.pop("added") == 10
    # Every other write of a check's row is a change that has its event.
    assert written["check_state"] == states + told.get("state", 0)
