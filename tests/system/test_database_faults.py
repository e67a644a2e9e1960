"""Whatever happens to the database: nothing is lost or acked too early, the cause is told, and it passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import faults
from tests.conftest import require
from tests.faults import Fault
from tests.mariadb_server import MariadbServer, missing_disk, missing_parts
from tests.processes import Site, wait_until
from tests.weather import running_house, settle, weather

FAULTS = [fault for fault in faults.EVERYWHERE if fault is not faults.Pause]  # see test_database_standstill


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost_or_acked_early_and_the_cause_is_told(
    fault: type[Fault], mariadb: MariadbServer, tmp_path: Path
) -> None:
    with running_house(mariadb, tmp_path) as house:
        weather(house, fault(mariadb, house.database), 2)
        settle(house)


def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path) -> None:
    require(missing_parts())
    if missing := missing_disk():  # a privilege, which nobody can install
        pytest.skip(missing)
    with MariadbServer(disk="224M") as server, running_house(server, tmp_path, "x" * 3000) as house:
        weather(house, faults.DiskFull(server, house.database), 2)
        settle(house)


def test_a_collector_does_not_start_when_the_pools_of_all_do_not_fit(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    most = mariadb.query("SELECT @@max_connections")[0][0]
    first = mariadb_site.collector(name="first", pool_size="5")
    room = {"connection_reserve": str(most - 8), "name": "second", "listen": "127.0.0.1:0"}
    refused = mariadb_site.start_collector(pool_size="4", **room)
    assert refused.wait() == 78
    assert (
        f"pool_size 4 and the 5 connections of 1 other live collectors do not fit into the database's "
        f"max_connections {most} less connection_reserve {most - 8}" in refused.log
    )
    mariadb_site.collector(upgrade=False, pool_size="3", writers="1", **room)
    assert first.stop() == 0
    # Who has stopped needs none.
    mariadb_site.collector(upgrade=False, pool_size="5", **{**room, "name": "third"})


def test_of_collectors_that_start_at_once_only_those_that_fit_do(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    most = mariadb.query("SELECT @@max_connections")[0][0]
    mariadb_site.upgrade()
    started = [
        mariadb_site.start_collector(
            name=f"c{number}", listen="127.0.0.1:0", pool_size="5", connection_reserve=str(most - 8)
        )
        for number in range(4)
    ]
    wait_until(lambda: sum(not program.is_running for program in started) == 3, what="three to be refused")
    (accepted,) = [program for program in started if program.is_running]
    accepted.wait_for_log('"listening"')
    assert all("do not fit" in program.log for program in started if program is not accepted)
