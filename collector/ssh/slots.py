"""How many hosts are asked at one time, and why those that hang do not keep the others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

_SUSPECTS = 4  # the part of all slots, one in so many, that hosts may take up which failed last time


class Slots:
    """Places for polls under way. Hosts that failed last time have only a part of them, so the others have the rest."""

    def __init__(self, total: int):
        self._all = asyncio.Semaphore(total)
        self._suspects = asyncio.Semaphore(max(1, total // _SUSPECTS))
        self._groups: dict[str, tuple[int, asyncio.Semaphore]] = {}

    @asynccontextmanager
    async def hold(self, groups: Iterable[tuple[str, int]], *, is_suspect: bool) -> AsyncIterator[None]:
        """Wait for a place. `groups` are those of the host that have a limit of their own."""
        # What fewer share comes first: who waits for it keeps no place that others could use.
        async with AsyncExitStack() as held:
            for name, limit in sorted(groups):
                await held.enter_async_context(self._group(name, limit))
            if is_suspect:
                await held.enter_async_context(self._suspects)
            await held.enter_async_context(self._all)
            yield

    def _group(self, name: str, limit: int) -> asyncio.Semaphore:
        known = self._groups.get(name)
        if known is None or known[0] != limit:
            self._groups[name] = known = (limit, asyncio.Semaphore(limit))
        return known[1]
