"""Whether the collector can do its work, and the one log line for each change of that."""

from __future__ import annotations

import threading
import time

import structlog

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
    who cannot write.
    """

    def __init__(self) -> None:
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
            if error is not None:
                self._problems[source] = str(error)
                self._since.setdefault(source, time.monotonic())
                self._say(str(error))
                return
            self._since.pop(source, None)
            # Another thread may have the same source, and have told the same before.
            if self._problems.pop(source, None) is not None and not self._problems:
                self._said.clear()
                log.info("the database is back")

    def _say(self, problem: str) -> None:
        # Threads that fail for two reasons by turns must not fill the log during a long outage.
        if problem not in self._said and len(self._said) < _SAID_AT_MOST:
            self._said.add(problem)
            log.error("cannot use the database; nothing is acked until it is back", error=problem)
