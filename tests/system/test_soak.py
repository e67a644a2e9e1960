"""Three minutes of `make soak`: the same faults every time, and a ledger that must agree exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import require
from tests.mariadb_server import missing_parts
from tests.soak.__main__ import soak, summary
from tests.soak.world import Size


@pytest.mark.mariadb
@pytest.mark.timeout(600)
def test_three_minutes_of_faults_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    require(missing_parts())
    verdict = soak(tmp_path, Size(hosts=200, ttl=30), seconds=180, seed=4, longest=3, deaths=1, settling=60)
    print(summary(verdict))  # noqa: T201 - shown when it fails
    assert not verdict.problems
    assert verdict.lost == verdict.duplicated == 0
    assert verdict.reports > 10_000
    assert verdict.transitions > 3_000
    assert len(verdict.faults) > 12
    assert verdict.renewals > 1.5 * verdict.hosts
    assert verdict.ca_changes == 1
