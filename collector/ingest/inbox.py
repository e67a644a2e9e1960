"""The bounded-by-its-feeder queue in front of a writer thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from collector.ingest.items import Item


class Inbox:
    """Items in order. Its feeder bounds what is in it; see `Gate`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._items: deque[Item] = deque()
        self._weight = 0
        self._wanted = 1
        self._closed = False

    def put(self, items: Iterable[Item]) -> None:
        """Append items; wakes the writer if it waits for them."""
        with self._lock:
            for item in items:
                self._items.append(item)
                self._weight += item.weight
            if self._weight >= self._wanted:
                self._filled.notify()

    def take(self, limit: int, linger: float) -> list[Item] | None:
        """What waits, up to a weight of `limit` reports; None after `close` once all is taken.

        Waits for the first item, and then at most `linger` seconds for the batch to fill up: one
        commit for many hosts costs little more than one for a few.
        """
        with self._lock:
            while not self._items:
                if self._closed:
                    return None
                self._wanted = 1
                self._filled.wait()
            if self._weight < limit and not self._closed and linger:
                self._wanted = limit
                self._filled.wait(linger)
            batch: list[Item] = []
            weight = 0
            while self._items and (not batch or weight + self._items[0].weight <= limit):
                item = self._items.popleft()
                weight += item.weight
                batch.append(item)
            self._weight -= weight
            return batch

    def close(self) -> None:
        """Let the writer end when it has taken what is here."""
        with self._lock:
            self._closed = True
            self._filled.notify_all()
