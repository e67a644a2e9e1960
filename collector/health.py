"""Whether the collector can do its work, and the one log line for each change of that."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from collector.store.errors import StoreError

log = structlog.get_logger()


class Health:
    """Serving or not, heard from every thread that uses the database.

    `on_change(serving)` is called once for each change, in the thread that noticed it.
    """

    def __init__(self, on_change: Callable[[bool], None]):
        self._on_change = on_change
        self._lock = threading.Lock()
        self._problem: str | None = None

    @property
    def is_serving(self) -> bool:
        """Whether the last transaction that anyone tried went well."""
        return self._problem is None

    def note(self, error: StoreError | None) -> None:
        """A transaction went well (None), or failed and will be tried again."""
        problem = None if error is None else str(error)
        with self._lock:
            before, self._problem = self._problem, problem
        if problem == before:
            return
        if problem is not None:
            log.error("cannot use the database; nothing is acked until it is back", error=problem)
        else:
            log.info("the database is back")
        if (problem is None) != (before is None):
            self._on_change(problem is None)
