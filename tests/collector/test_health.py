"""One collector, many threads that use the database: when it serves, and what it says when not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grpc import aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from structlog.testing import capture_logs

from collector.cli.doctor import look_at_port
from collector.health import Health, HealthServicer
from collector.store.errors import StoreReadOnly, StoreUnavailable

GONE = StoreUnavailable("database: gone")
READ_ONLY = StoreReadOnly("database: read-only")


@pytest.fixture
def changes() -> list[bool]:
    return []


@pytest.fixture
def health(changes: list[bool]) -> Health:
    return Health(changes.append)


def test_who_can_read_says_nothing_of_who_cannot_write(health: Health, changes: list[bool]) -> None:
    for _ in range(3):
        health.note(READ_ONLY, "writer-0")
        health.note(None, "sweeper")
    assert changes == [False]
    assert (health.is_serving, health.problem) == (False, "database: read-only")
    health.note(None, "writer-0")
    assert changes == [False, True]
    assert (health.is_serving, health.problem) == (True, "")


def test_each_problem_is_told_once(health: Health) -> None:
    health.note(GONE, "writer-0")
    health.note(GONE, "writer-1")
    health.note(READ_ONLY, "sweeper")
    assert health.problem == "database: gone; database: read-only"


def test_the_log_says_each_problem_once_in_an_outage(health: Health) -> None:
    with capture_logs() as logs:
        for _ in range(2):
            for _ in range(100):
                health.note(GONE, "writer-0")
                health.note(READ_ONLY, "writer-0")
            health.note(None, "writer-0")
    assert [entry.get("error", "back") for entry in logs] == 2 * [
        "database: gone",
        "database: read-only",
        "back",
    ]


def test_the_log_stays_short_whatever_the_database_says(health: Health) -> None:
    with capture_logs() as logs:
        for number in range(10_000):
            health.note(StoreUnavailable(f"database: problem {number}"))
    assert len(logs) < 100


def test_the_calling_thread_is_the_source_unless_told(health: Health) -> None:
    health.note(GONE)
    health.note(None)
    assert health.is_serving


def test_a_health_check_tells_what_was_counted(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/health"

    async def scenario() -> dict[str, str]:
        server = aio.server()
        servicer = HealthServicer(lambda: "", lambda: {"unauthenticated": 2, "reports": 7})
        add_HealthServicer_to_server(servicer, server)
        await servicer.set("", HealthCheckResponse.SERVING)
        server.add_insecure_port(listen)
        await server.start()
        try:
            found = await asyncio.to_thread(lambda: list(look_at_port(listen, None)))
        finally:
            await server.stop(None)
        return {finding.name: finding.text for finding in found}

    assert asyncio.run(scenario()) == {
        "port": f"{listen} answers and serves",
        "refused": "since it started: 2 connections without an accepted certificate",
    }
