"""When each host is due next. Times in seconds of the loop's clock."""

from __future__ import annotations

import heapq


class Schedule:
    """The due times of hosts, by their numbers. A host that is under way is not due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._due: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, host: int) -> bool:
        return host in self._due

    def put(self, host: int, due: float) -> None:
        """A host is due at that time, whatever was said before."""
        self._due[host] = due
        heapq.heappush(self._heap, (due, host))

    def drop(self, host: int) -> None:
        """A host is not due any more."""
        self._due.pop(host, None)

    def take(self, now: float) -> list[int]:
        """The hosts that are due by now; they are no longer on the schedule."""
        taken = []
        while self._heap and self._heap[0][0] <= now:
            due, host = heapq.heappop(self._heap)
            if self._due.get(host) == due:
                del self._due[host]
                taken.append(host)
        return taken

    @property
    def next_due(self) -> float | None:
        """When to look again; None: nothing is on the schedule."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


def next_turn(due: float, interval: float, now: float) -> float:
    """The turn after the one that was due: in step, so that rounds do not drift, but never two at once."""
    missed = max(0.0, now - due) // interval
    return due + (missed + 1) * interval
