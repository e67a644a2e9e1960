"""One collector, many threads that use the database: when it serves, and what it says when not."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from grpc import aio
from structlog.testing import capture_logs

from collector.cli.doctor import look_at_port
from collector.health import Health
from collector.ingest.calls import OpenCalls
from collector.ingest.health_checks import HealthChecks
from collector.store.errors import StoreReadOnly, StoreUnavailable

GONE = StoreUnavailable("database: gone")
READ_ONLY = StoreReadOnly("database: read-only")


@pytest.fixture
def health() -> Health:
    return Health()


def test_who_can_read_says_nothing_of_who_cannot_write(health: Health) -> None:
    for _ in range(3):
        health.note(READ_ONLY, "writer-0")
        health.note(None, "sweeper")
    assert (health.is_serving, health.problem) == (False, "database: read-only")
    health.note(None, "writer-0")
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


def test_a_health_check_tells_why_not_and_what_was_counted(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/health"

    async def scenario() -> list[dict[str, str]]:
        server = aio.server()
        health = Health()
        checks = HealthChecks(health, Counter({"unauthenticated": 2, "reports": 7}), OpenCalls())
        checks.serve_on(server)
        server.add_insecure_port(listen)
        await server.start()
        try:
            serving = await asyncio.to_thread(look)
            health.note(GONE)
            failing = await asyncio.to_thread(look)
            health.note(None)
            checks.stop()
            return [serving, failing, await asyncio.to_thread(look)]
        finally:
            await server.stop(None)

    def look() -> dict[str, str]:
        return {finding.name: finding.text for finding in look_at_port(listen, None)}

    serving, failing, stopping = asyncio.run(scenario())
    assert serving == {
        "port": f"{listen} answers and serves",
        "refused": "since it started: 2 connections without an accepted certificate",
    }
    assert "database: gone" in failing["port"]
    assert "answers and serves" not in stopping["port"]
