"""First come, first served: what neither a lock in a database file nor a semaphore knows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from collector.store.errors import StoreLocked


class Turns:
    """Lets `places` threads at a time through, in the order in which they came.

    Otherwise a thread that always has more to do would be there first nearly every time: before those that
    look again and again whether a file is free, and before those that a semaphore has just woken.
    """

    def __init__(self, places: int = 1) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._queue: deque[threading.Event] = deque()  # who waits; empty while there are free places

    def acquire(self, timeout: float = 0) -> bool:
        """Wait at most `timeout` seconds for a turn; whether it has come. `release` ends it."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            if not timeout:
                return False
            turn = threading.Event()
            self._queue.append(turn)
        if turn.wait(timeout):
            return True
        with self._lock:
            if turn.is_set():  # it came in this very moment
                return True
            self._queue.remove(turn)
        return False

    def release(self) -> None:
        """End a turn: the next in the queue has it."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1

    @contextmanager
    def take(self, timeout: float) -> Iterator[None]:
        """Wait at most `timeout` seconds for a turn, and have it until the end. Raises StoreLocked."""
        if not self.acquire(timeout):
            raise StoreLocked(f"database: others have been writing for more than {timeout:g} s")
        try:
            yield
        finally:
            self.release()
