"""Who is called silent while collectors, databases and networks fail. Real processes, real cuts."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from collector.cli.stale import find_silent
from collector.core.silence import Presence
from collector.store.errors import StoreError
from collector.store.selection import ALL
from collector.store.store import open_store
from tests.mariadb_server import MariadbServer
from tests.processes import Program, Site, wait_until
from tests.relay import Relay

HOSTS = 20  # more than are needed to make a fleet
TTL = 8.0  # seconds, of hosts that report every second: a stall of the machine is shorter
EACH_ALONE = 2 * HOSTS
"""More hosts than there are: whoever is silent is announced alone, however many were late meanwhile."""


class Watch:
    """Looks as `collector-cli stale` does, again and again, while something else happens."""

    def __init__(self, database_url: str):
        self.presences: Counter[Presence] = Counter()
        """How the hosts were that were not fresh at the last look."""
        self.is_listening = True
        self.were_stale: set[str] = set()
        """Who was called stale at any look."""
        self.looks = 0
        self._store = open_store(database_url, pool_size=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def look_again(self) -> None:
        """Wait for a look that begins after now."""
        seen = self.looks
        wait_until(lambda: self.looks > seen + 1, what="two looks at the database")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        self._store.close()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                with self._store.transaction(write=False) as tx:
                    found = find_silent(tx, ALL, 0)
            except StoreError:
                continue  # nobody can look while the database is away
            self.presences = Counter(presence for _, presence in found.hosts)
            self.is_listening = found.listening.since is not None
            self.were_stale |= {host.hostname for host, presence in found.hosts if presence is Presence.STALE}
            self.looks += 1


@contextmanager
def watching(site: Site) -> Iterator[Watch]:
    watch = Watch(site.database_url)
    watch.start()
    try:
        yield watch
    finally:
        watch.close()


def fresh(site: Site) -> int:
    return sum(host["presence"] == "fresh" for host in site.json("hosts")["hosts"])


def silence_events(site: Site) -> dict[str, int]:
    """What was announced of silence, by kind."""
    told = Counter(event["kind"] for event in site.json("events", "--limit", "10000")["events"])
    return {kind: told[kind] for kind in ("silent", "back", "fleet-silent", "fleet-back") if told[kind]}


def start_agent(site: Site, name: str, **settings: str) -> Program:
    return site.agent(name, interval="1s", ttl=f"{TTL:g}s", **settings)


def start_fleet(site: Site, address: str = "", interval: float = 1, ttl: float = TTL) -> None:
    """A simulated fleet, through `address` if that is given."""
    direct, site.address = site.address, address or site.address
    # An ack is waited for until long after the silence was told.
    site.fleet(HOSTS, "--interval", f"{interval:g}s", "--ttl", f"{ttl:g}s", "--ack-timeout", "20s")
    site.address = direct
    wait_until(lambda: fresh(site) == HOSTS, what="the whole fleet")


def wait_until_heard(site: Site, hosts: int) -> None:
    """Wait until that many hosts have reported from now on."""
    since = site.json("status")["now"]
    wait_until(
        lambda: sum(str(h["last_report_at"]) > since for h in site.json("hosts")["hosts"]) == hosts,
        what=f"reports of {hosts} hosts",
    )


def after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def test_a_killed_collector_makes_nobody_silent_and_who_died_meanwhile_is_found(sqlite_site: Site) -> None:
    site = sqlite_site
    settings = {"name": "c", "silence_fleet_minimum": str(EACH_ALONE)}
    collector = site.collector(**settings)
    start_fleet(site)
    doomed = start_agent(site, "doomed")
    wait_until(lambda: fresh(site) == HOSTS + 1, what="the agent's first report")
    with watching(site) as watch:
        collector.kill()
        doomed.kill()
        wait_until(lambda: not watch.is_listening, what="the missing heartbeats to be noticed")
        wait_until(lambda: watch.presences == {Presence.UNKNOWN: HOSTS + 1}, what="nobody to be known")
        assert watch.were_stale == set()
        site.collector(upgrade=False, **settings)
        wait_until(lambda: watch.were_stale, what="the dead agent")
        wait_until_heard(site, HOSTS)
    assert watch.were_stale == {"doomed"}
    assert silence_events(site) == {"silent": 1}


def test_a_frozen_collector_makes_nobody_silent(mariadb_site: Site) -> None:
    """A machine that stands still for a while, and a process that finds itself in the future."""
    site = mariadb_site
    collector = site.collector()
    start_fleet(site)
    with watching(site) as watch:
        collector.signal(signal.SIGSTOP)
        wait_until(lambda: not watch.is_listening, what="the missing heartbeats to be noticed")
        collector.signal(signal.SIGCONT)
        wait_until(lambda: watch.is_listening and not watch.presences, what="the fleet's return")
        wait_until(after(TTL))
    assert watch.were_stale == set()
    assert silence_events(site) == {}
    assert "was not listening" in collector.log


def test_a_database_that_is_away_makes_nobody_silent_and_who_died_meanwhile_is_found(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    site = mariadb_site
    site.collector(silence_fleet_minimum=str(EACH_ALONE))
    start_fleet(site)
    doomed = start_agent(site, "doomed")
    wait_until(lambda: fresh(site) == HOSTS + 1, what="the agent's first report")
    with watching(site) as watch:
        mariadb.stop(signal.SIGKILL)
        doomed.kill()
        wait_until(after(TTL + 4))
        mariadb.start()
        wait_until(lambda: watch.were_stale, what="the dead agent")
        wait_until_heard(site, HOSTS)
    assert watch.were_stale == {"doomed"}
    assert silence_events(site) == {"silent": 1}


def test_a_fleet_behind_a_cut_network_is_one_event_and_so_is_its_return(sqlite_site: Site) -> None:
    site = sqlite_site
    site.collector()
    with Relay(site.address) as relay:
        start_fleet(site, relay.address)
        with watching(site) as watch:
            relay.cut()
            wait_until(lambda: watch.presences[Presence.STALE] == HOSTS, what="the whole fleet to be stale")
            assert silence_events(site) == {"fleet-silent": 1}
            relay.heal()
            wait_until(lambda: not watch.presences, what="the whole fleet's return")
        wait_until(lambda: "fleet-back" in silence_events(site), what="the fleet's return to be told")
        wait_until(after(TTL + 4))
    assert silence_events(site) == {"fleet-silent": 1, "fleet-back": 1}


def test_a_fleet_on_half_open_connections_comes_back_by_itself(sqlite_site: Site) -> None:
    """The collector's ends are closed, the agents' ends never: only a deadline can tell."""
    site = sqlite_site
    site.collector()
    with Relay(site.address) as relay:
        start_fleet(site, relay.address)
        relay.abandon()
        wait_until(lambda: "fleet-silent" in silence_events(site), what="the fleet's silence")
        wait_until(lambda: fresh(site) == HOSTS, what="the whole fleet's return")
        wait_until(lambda: "fleet-back" in silence_events(site), what="the fleet's return to be told")
    assert silence_events(site) == {"fleet-silent": 1, "fleet-back": 1}


def test_one_host_cut_off_among_many_is_one_silent_and_one_back(site: Site) -> None:
    site.collector()
    # Who is heard seldom is late seldom, and who is late counts when the fleet is judged.
    start_fleet(site, interval=5, ttl=60)
    with Relay(site.address) as relay, watching(site) as watch:
        start_agent(site, "lonely", collector=relay.address)
        wait_until(lambda: fresh(site) == HOSTS + 1, what="the agent's first report")
        relay.cut()
        wait_until(lambda: "silent" in silence_events(site), what="its silence")
        watch.look_again()
        relay.heal()
        wait_until(lambda: fresh(site) == HOSTS + 1, what="its return")
    assert watch.were_stale == {"lonely"}
    assert silence_events(site) == {"silent": 1, "back": 1}
