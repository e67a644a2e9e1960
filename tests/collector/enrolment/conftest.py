"""Fixtures for the tests of enrolment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.store.store import Store
from tests.collector.enrolment.records import own_ca
from tests.collector.enrolment_site import EnrolmentSite


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Iterator[EnrolmentSite]:
    with EnrolmentSite(store, own_ca(tmp_path)) as site:
        yield site


@pytest.fixture
def sqlite_site(sqlite_store: Store, tmp_path: Path) -> Iterator[EnrolmentSite]:
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), rate=100_000) as site:
        yield site
