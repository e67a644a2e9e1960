"""Whether the collector can do its work, and the one log line for each change of that."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

import structlog
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from collector.store.errors import StoreError

PROBLEM_METADATA = "fleetpulse-problem-bin"
"""The trailing metadata of a health check that says, in UTF-8, why the collector does not serve."""

COUNTS_METADATA = "fleetpulse-counts-bin"
"""The trailing metadata of a health check that has, as JSON, what the collector has counted until now."""

_SAID_AT_MOST = 50  # different problems logged in one outage
_TOLD_AT_MOST = 1_000  # characters

log = structlog.get_logger()


class Health:
    """Serving or not, heard from every thread that uses the database.

    A thread's problem is over when its own next transaction goes well: who can read says nothing of
    who cannot write. `on_change(serving)` is called once for each change, in the thread that noticed
    it; it must not wait for anything.
    """

    def __init__(self, on_change: Callable[[bool], None]):
        self._on_change = on_change
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}  # by source
        self._since: dict[str, float] = {}  # when each source's problem began; monotonic
        self._said: set[str] = set()

    @property
    def is_serving(self) -> bool:
        """Whether the last transaction of everyone who tried went well."""
        return not self._problems

    @property
    def problem(self) -> str:
        """What is wrong at present, in one line; empty when nothing is."""
        with self._lock:
            different = dict.fromkeys(self._problems.values())
        return "; ".join(different)[:_TOLD_AT_MOST]

    @property
    def failing_for(self) -> float:
        """Seconds since the present problem that has lasted longest began; 0 when there is none."""
        now = time.monotonic()
        with self._lock:
            return now - min(self._since.values(), default=now)

    def note(self, error: StoreError | None, source: str = "") -> None:
        """A transaction went well (None), or failed and will be tried again.

        `source` is who tried; unless told, the thread that calls.
        """
        source = source or threading.current_thread().name
        if error is None and source not in self._problems:
            return
        with self._lock:
            before = bool(self._problems)
            if error is None:
                self._problems.pop(source, None)
                self._since.pop(source, None)
            else:
                self._problems[source] = str(error)
                self._since.setdefault(source, time.monotonic())
                self._say(str(error))
            now = bool(self._problems)
            if now == before:
                return
            if not now:
                self._said.clear()
                log.info("the database is back")
            self._on_change(not now)

    def _say(self, problem: str) -> None:
        # Threads that fail for two reasons by turns must not fill the log during a long outage.
        if problem not in self._said and len(self._said) < _SAID_AT_MOST:
            self._said.add(problem)
            log.error("cannot use the database; nothing is acked until it is back", error=problem)


class HealthServicer(health_aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """The standard health service, which also says why it does not serve, and what was counted."""

    def __init__(self, problem: Callable[[], str], counts: Callable[[], Mapping[str, int]]):
        super().__init__()
        self._problem = problem
        self._counts = counts

    async def Check(  # noqa: N802 - the name of the service definition
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[object, object]
    ) -> health_pb2.HealthCheckResponse:
        """See the standard; the rest travels as `PROBLEM_METADATA` and `COUNTS_METADATA`."""
        told = [(COUNTS_METADATA, json.dumps(self._counts()).encode())]
        if problem := self._problem():
            told.append((PROBLEM_METADATA, problem.encode()))
        context.set_trailing_metadata(tuple(told))
        return await super().Check(request, context)
