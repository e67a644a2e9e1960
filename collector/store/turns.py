"""First come, first served: what a lock in a database file does not know."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from collector.store.errors import StoreLocked


class Turns:
    """Lets one thread at a time through, in the order in which they came.

    For a database that takes one writer at a time and has the others look again and again whether it is
    free: a thread that always has more to write would be there first nearly every time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()  # the first has its turn

    @contextmanager
    def take(self, timeout: float) -> Iterator[None]:
        """Wait at most `timeout` seconds for a turn, and have it until the end. Raises StoreLocked."""
        turn = threading.Event()
        with self._lock:
            self._queue.append(turn)
            self._queue[0].set()
        if not turn.wait(timeout):
            self._give_up(turn, timeout)
        try:
            yield
        finally:
            with self._lock:
                self._queue.popleft()
                if self._queue:
                    self._queue[0].set()

    def _give_up(self, turn: threading.Event, timeout: float) -> None:
        with self._lock:
            if turn.is_set():  # it came in this very moment
                return
            self._queue.remove(turn)
        raise StoreLocked(f"database: others have been writing for more than {timeout:g} s")
