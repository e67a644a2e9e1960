"""A collector with a fleet on a database, what it must do while a fault lasts, and what must be true afterwards."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from collector.health import PROBLEM_METADATA
from collector.store.schema import upgrade
from collector.store.store import open_store
from tests.faults import Fault
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import Program, Site, running_site, wait_until
from tests.reporting_fleet import ReportingFleet

HOSTS = 20
POOL = 4
RECOVERY = 40.0  # seconds that it may take on a busy machine
MIB = 1 << 20

log = logging.getLogger(__name__)


class Process(NamedTuple):
    """What a process takes up."""

    memory: int  # bytes
    threads: int

    @classmethod
    def of(cls, pid: int) -> Process:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return cls(int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]))


class House:
    """A collector under an account of its own, which the server grants no more connections than its pool has."""

    def __init__(self, server: MariadbServer, folder: Path, stack: ExitStack, message: str):
        self.server = server
        url = server.fresh_database()
        self.database = database_of(url)
        store = open_store(url, pool_size=1)
        upgrade(store, lambda: time.time_ns() // 1_000_000)
        store.close()
        self.site: Site = stack.enter_context(running_site(server.account(url, connections=POOL), folder))
        self.doctors_url = server.account(url, "doctor")
        self.collector: Program = self.site.collector(upgrade=False, pool_size=str(POOL))
        channel = stack.enter_context(grpc.insecure_channel(self.site.address))
        self._health = HealthStub(channel)
        self.fleet = stack.enter_context(ReportingFleet(self.site.address, HOSTS, message=message))

    def problem(self) -> str:
        """Why the collector does not serve; empty while it does."""
        answer, call = self._health.Check.with_call(HealthCheckRequest(), timeout=30)
        if answer.status == HealthCheckResponse.SERVING:
            return ""
        return dict(call.trailing_metadata()).get(PROBLEM_METADATA, b"NOT_SERVING").decode()

    def doctor(self) -> str:
        """All that doctor finds wrong."""
        done = self.site.cli(
            "doctor", "--json", FLEETPULSE_DATABASE=self.doctors_url, FLEETPULSE_LISTEN=self.site.address
        )
        found = json.loads(done.stdout)["findings"]
        return "\n".join(
            f"{finding['name']}: {finding['text']}" for finding in found if finding["state"] != "OK"
        )

    def marks(self) -> dict[str, int]:
        """What is committed."""
        rows = self.server.query(
            "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id", database=self.database
        )
        return dict(rows)

    def changes(self) -> dict[str, int]:
        """How many changes of state were written for each host."""
        rows = self.server.query(
            "SELECT h.host_id, COUNT(*) FROM host h JOIN event e ON e.host = h.id "
            "WHERE e.kind = 'state' GROUP BY h.id",
            database=self.database,
        )
        return dict(rows)

    def acked_in_peace(self) -> dict[str, int]:
        """What is acked, once acks that were on their way have come."""

        def peace() -> dict[str, int]:
            before = dict(self.fleet.acked)
            time.sleep(0.5)  # in which nothing moves: that is what is waited for
            return before if before == self.fleet.acked else {}

        return wait_until(peace, what="an end of acks")

    def nothing_is_acked_early(self) -> None:
        acked = dict(self.fleet.acked)
        marks = self.marks()
        early = {host: (seq, marks.get(host)) for host, seq in acked.items() if seq > marks.get(host, 0)}
        assert not early, f"acked and not committed: {early}"


@contextmanager
def running_house(server: MariadbServer, folder: Path, message: str = "") -> Iterator[House]:
    with ExitStack() as stack:
        house = House(server, folder, stack, message)
        wait_until(lambda: min(house.fleet.acked.values()) >= 3, what="everyone's third report")
        yield house


def weather(house: House, fault: Fault, seconds: float) -> None:
    """Let the fault happen for at least so long, and judge what the collector makes of it.

    The log, `doctor` and the health service say why nobody is served; what was acked is never ahead of
    what is committed; memory and threads stay as they are; and once the cause is gone, everything goes
    on by itself.
    """
    house.server.query("FLUSH STATUS")
    before = Process.of(house.collector.pid)
    began = time.monotonic()
    with fault:
        if fault.cause:
            wait_until(lambda: re.search(fault.cause, house.problem()), what=f"{fault.cause} told")
            if fault.stops_writes:
                standing = house.acked_in_peace()
            assert re.search(fault.cause, house.collector.log)
            wait_until(lambda: re.search(f"port: .*({fault.cause})", house.doctor()), what="doctor's finding")
        while time.monotonic() < began + seconds:
            if not fault.stops_writes:
                house.nothing_is_acked_early()
            time.sleep(0.05)
        if fault.stops_writes:
            assert house.fleet.acked == standing
        during = Process.of(house.collector.pid)
    ended = time.monotonic()
    assert fault.has_bitten()
    target = {host: seq + 1 for host, seq in house.fleet.acked.items()}
    wait_until(lambda: house.problem() == "", seconds=RECOVERY, what="serving again")
    wait_until(
        lambda: all(house.fleet.acked[host] >= seq for host, seq in target.items()),
        seconds=RECOVERY,
        what="everyone acked again",
    )
    log.info(
        "%s: recovered in %.1f s; %s, then %s; Max_used_connections %d",
        fault.name,
        time.monotonic() - ended,
        before,
        during,
        house.server.status("Max_used_connections"),
    )
    assert during.threads <= before.threads + 2
    assert during.memory <= before.memory + 16 * MIB


def settle(house: House) -> None:
    """Everything that was made is committed, once, and acked."""
    house.fleet.drain()
    assert house.marks() == house.fleet.made == house.fleet.acked
    assert house.changes() == house.fleet.made  # each report is one change
    assert (
        "max_user_connections" not in house.collector.log
    )  # the server counted no more than the pool's size
    assert "Traceback" not in house.collector.log
