"""Clocks that are set while everything runs, or while a collector is down.

Real processes under libfaketime. What must hold: who is alive is never called silent, who is dead is
found, and nothing is announced but that.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.fake_clock import FakeClock, missing_parts
from tests.mariadb_server import MariadbServer
from tests.processes import Program, Site, running_site, wait_until

HOUR, DAY, TEN_YEARS = 3_600, 86_400, 3_652 * 86_400
TTL = 8  # seconds, of agents that report every second: a stall of the machine is shorter
FOUND_WITHIN = TTL + 40.0


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    """The clock of the collector's machine."""
    require(missing_parts())
    return FakeClock(tmp_path)


@pytest.fixture
def agents_clock(tmp_path: Path) -> FakeClock:
    """The clock of an agent's machine."""
    require(missing_parts())
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return FakeClock(folder)


class Admin:
    """Looks at the site from the collector's machine, with its clock."""

    def __init__(self, site: Site, clock: FakeClock):
        self._site = site
        self._clock = clock

    def json(self, *arguments: str) -> Any:
        with self._clock.worn():
            return self._site.json(*arguments)

    def hosts(self) -> dict[str, Any]:
        return {host["hostname"]: host for host in self.json("hosts")["hosts"]}

    def stale(self) -> list[str]:
        """Who is called stale at this moment."""
        return [host["hostname"] for host in self.json("stale")["hosts"] if host["presence"] == "stale"]

    def events(self) -> Counter[str]:
        """What was announced, other than that hosts were added and what they are."""
        told = Counter(event["kind"] for event in self.json("events", "--limit", "10000")["events"])
        return Counter({kind: n for kind, n in told.items() if kind not in ("added", "fact", "state")})

    def skew(self, name: str) -> float:
        return float(self.json("show", name)["clock_skew_seconds"])

    def wait_for(self, **expected: str) -> None:
        """Wait until every host has that presence."""
        wait_until(
            lambda: {name: host["presence"] for name, host in self.hosts().items()} == expected,
            seconds=FOUND_WITHIN,
            what=str(expected),
        )

    def wait_for_reports(self, *names: str) -> None:
        """Wait until each has reported twice from now on; none of them may be called stale at any look."""
        heard: dict[str, set[str]] = {name: set() for name in names}

        def have_reported() -> bool:
            hosts = self.hosts()
            for name, times in heard.items():
                assert hosts[name]["presence"] != "stale"
                times.add(hosts[name]["last_report_at"])
            return all(len(times) > 2 for times in heard.values())

        wait_until(have_reported, seconds=FOUND_WITHIN, what=f"reports of {names}")


def start_agent(site: Site, name: str) -> Program:
    return site.agent(name, interval="1s", ttl=f"{TTL}s")


def test_no_step_of_a_running_clock_changes_who_is_silent(
    site: Site, clock: FakeClock, agents_clock: FakeClock
) -> None:
    admin = Admin(site, clock)
    with clock.worn():
        site.collector(name="c")
    with agents_clock.worn():
        start_agent(site, "jumpy")
    start_agent(site, "calm")
    doomed = start_agent(site, "doomed")
    admin.wait_for(jumpy="fresh", calm="fresh", doomed="fresh")
    for step, agents_step in ((HOUR, -HOUR), (-DAY, TEN_YEARS)):
        clock.set(step)
        agents_clock.set(agents_step)
        admin.wait_for_reports("jumpy", "calm", "doomed")
        # The collector's time stays what it was, and only the agent's clock is wrong by it.
        assert abs(admin.skew("jumpy") - agents_step) < 60
        assert abs(admin.skew("calm")) < 60
    clock.set(TEN_YEARS)
    agents_clock.set(0)
    doomed.kill()
    admin.wait_for(jumpy="fresh", calm="fresh", doomed="stale")
    clock.set(-HOUR)
    admin.wait_for_reports("jumpy", "calm")
    assert admin.stale() == ["doomed"]
    assert admin.events() == {"silent": 1}


def test_a_collector_that_starts_with_its_clock_set_back_hides_no_dead_agent(
    site: Site, clock: FakeClock
) -> None:
    admin = Admin(site, clock)
    clock.set(DAY)
    with clock.worn():
        collector = site.collector(name="c")
    start_agent(site, "alive")
    dead = start_agent(site, "dead")
    admin.wait_for(alive="fresh", dead="fresh")
    collector.kill()
    dead.kill()
    clock.set(0)
    with clock.worn():
        collector = site.collector(upgrade=False, name="c")
    collector.wait_for_log("the clock was set back")
    admin.wait_for_reports("alive")
    admin.wait_for(alive="fresh", dead="stale")
    assert abs(admin.skew("alive")) < 60
    assert admin.events() == {"silent": 1}
    assert admin.json("status")["collectors"][0]["heartbeat_age_seconds"] < 60


def test_a_collector_that_starts_with_its_clock_set_forward_calls_nobody_silent_for_it(
    sqlite_site: Site, clock: FakeClock
) -> None:
    site = sqlite_site
    admin = Admin(site, clock)
    with clock.worn():
        collector = site.collector(name="c")
    start_agent(site, "alive")
    dead = start_agent(site, "dead")
    admin.wait_for(alive="fresh", dead="fresh")
    collector.kill()
    dead.kill()
    clock.set(TEN_YEARS)
    with clock.worn():
        site.collector(upgrade=False, name="c")
    assert admin.stale() == []
    admin.wait_for_reports("alive")
    admin.wait_for(alive="fresh", dead="stale")
    assert admin.events() == {"silent": 1}
    # By its clock the older events are older than they are kept.
    assert len(admin.json("events", "--kind", "added")["events"]) == 2


def test_collectors_whose_clocks_differ_share_one_time(mariadb_site: Site, clock: FakeClock) -> None:
    """Each judges what the other has received, so an hour between them would make whole fleets silent."""
    site = mariadb_site
    admin = Admin(site, clock)
    site.collector(name="first")
    start_agent(site, "one")
    for name, step in (("ahead", HOUR), ("behind", -HOUR)):
        site.address = ""
        clock.set(step)
        with clock.worn():
            collector = site.collector(upgrade=False, name=name)
        assert abs(float(_logged(collector, "the system's clock differs")["ahead_seconds"]) - step) < 60
        start_agent(site, f"of-{name}")
    admin.wait_for(**{"one": "fresh", "of-ahead": "fresh", "of-behind": "fresh"})
    admin.wait_for_reports("one", "of-ahead", "of-behind")
    status = admin.json("status")
    assert {row["listening"] for row in status["collectors"]} == {True}
    assert all(abs(row["heartbeat_age_seconds"]) < 60 for row in status["collectors"])
    assert all(abs(admin.skew(name)) < 60 for name in ("one", "of-ahead", "of-behind"))
    assert admin.events() == {}


@pytest.fixture
def clocked_mariadb(mariadb: MariadbServer, clock: FakeClock) -> Iterator[MariadbServer]:
    """A server of its own whose clock can be set."""
    del mariadb  # decides whether servers can be had here at all
    server = MariadbServer()
    try:
        with clock.worn():
            server.start()
        yield server
    finally:
        server.close()


def test_no_step_of_the_databases_clock_changes_who_is_silent(
    clocked_mariadb: MariadbServer, clock: FakeClock, agents_clock: FakeClock, tmp_path: Path
) -> None:
    with running_site(clocked_mariadb.fresh_database(), tmp_path) as site:
        admin = Admin(site, agents_clock)
        clock.set(HOUR)
        site.collector(name="gone").kill()  # its last heartbeat will lie in the database's future
        clock.set(0)
        site.address = ""
        site.collector(upgrade=False, name="here")
        start_agent(site, "alive")
        doomed = start_agent(site, "doomed")
        admin.wait_for(alive="fresh", doomed="fresh")
        for step in (HOUR, -DAY, TEN_YEARS):
            clock.set(step)
            assert abs(clocked_mariadb.query("SELECT UNIX_TIMESTAMP()")[0][0] - time.time() - step) < 60
            admin.wait_for_reports("alive", "doomed")
            admin.wait_for(alive="fresh", doomed="fresh")
        clock.set(-HOUR)
        doomed.kill()
        admin.wait_for(alive="fresh", doomed="stale")
        assert admin.events() == {"silent": 1}


def _logged(collector: Program, text: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(collector.wait_for_log(text))
    return line
