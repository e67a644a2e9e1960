"""The bounded-by-its-feeder queue in front of a writer thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from collector.ingest.items import Item


class Inbox:
    """Items in order. Its feeder bounds what is in it; see `Gate`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._items: OrderedDict[Item, None] = OrderedDict()
        self._weight = 0
        self._wanted = 1
        self._closed = False

    def put(self, items: Iterable[Item]) -> None:
        """Append items; wakes the writer if it waits for them."""
        with self._lock:
            for item in items:
                self._items[item] = None
                self._weight += item.weight
            if self._weight >= self._wanted:
                self._filled.notify()

    def take(self, limit: int, linger: float) -> list[Item] | None:
        """What waits, up to a weight of `limit` reports; None after `close` once all is taken.

        Waits for the first item, and then at most `linger` seconds for the batch to fill up: one
        commit for many hosts costs little more than one for a few.
        """
        with self._lock:
            while True:
                while not self._items:
                    if self._closed:
                        return None
                    self._wanted = 1
                    self._filled.wait()
                if self._weight < limit and not self._closed and linger:
                    self._wanted = limit
                    self._filled.wait(linger)
                if batch := self._pick(limit):
                    return batch
                # All of it was withdrawn while we lingered.

    def _pick(self, limit: int) -> list[Item]:
        batch: list[Item] = []
        weight = 0
        while self._items:
            item = next(iter(self._items))
            if batch and weight + item.weight > limit:
                break
            del self._items[item]
            weight += item.weight
            batch.append(item)
        self._weight -= weight
        return batch

    def withdraw(self, item: Item) -> bool:
        """Take back an item that nobody waits for any more; False if the writer has it already."""
        with self._lock:
            if item not in self._items:
                return False
            del self._items[item]
            self._weight -= item.weight
            return True

    def close(self) -> None:
        """Let the writer end when it has taken what is here."""
        with self._lock:
            self._closed = True
            self._filled.notify_all()
