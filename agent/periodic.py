"""A thread that does one thing again and again, and that nobody has to wait for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic:
    """Calls `action` at each time that `next_due` names, until stopped.

    `next_due` gets the monotonic time in seconds and returns a later one. The thread is a daemon: one
    that hangs in a call for which the kernel has no end does not keep the process from ending.
    """

    def __init__(
        self, name: str, action: Callable[[], None], first_due: float, next_due: Callable[[float], float]
    ) -> None:
        self._name = name
        self._action = action
        self._due = first_due
        self._next_due = next_due
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; once only."""
        self._thread.start()

    def stop(self) -> None:
        """Start no further action. Does not wait for one in progress."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the action in progress; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.wait(max(0.0, self._due - time.monotonic())):
            try:
                self._action()
            except Exception:
                # One bad round must not be the last: nobody would notice until the host is stale.
                log.exception("%s failed", self._name)
            self._due = self._next_due(time.monotonic())
