"""What was found out about hosts, gathered for a moment and then written, however long the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from collector.ssh.look import Found, note_findings
from collector.store.clerk import Clerk
from collector.store.errors import (
    SchemaMismatch,
    StoreConflict,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
)

_GATHER = 0.5  # seconds

log = structlog.get_logger()


class Notes:
    """The last word about each host waits here. `now` in milliseconds, `asked_every` as in `of_no_answer`."""

    def __init__(
        self,
        clerk: Clerk,
        now: Callable[[], int],
        note_store: Callable[[StoreError | None], None],
        asked_every: int,
    ):
        self._clerk = clerk
        self._now = now
        self._note_store = note_store
        self._asked_every = asked_every
        self._waiting: dict[int, Found] = {}

    def add(self, found: Found) -> None:
        """Write this down soon."""
        self._waiting[found.finding.host] = found

    async def keep_writing(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_GATHER)
            await self.write()

    async def write(self) -> None:
        """Write what waits. A database that is away is tried again by the next call."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        try:
            await self._write(list(waiting.values()))
        except StoreUnavailable as error:
            self._note_store(error)
            self._waiting = waiting | self._waiting
        except (StoreConflict, SchemaMismatch, StoreMisconfigured):
            self._waiting = waiting | self._waiting
        except StoreError:
            await self._write_one_by_one(waiting)

    async def _write_one_by_one(self, waiting: dict[int, Found]) -> None:
        """One of them cannot be stored, and the others are not to suffer for it."""
        for host, found in waiting.items():
            try:
                await self._write([found])
            except StoreUnavailable:
                self._waiting.setdefault(host, found)
            except StoreError:
                log.exception("cannot store why a host is silent", host=found.finding.name)

    async def _write(self, found: Sequence[Found]) -> None:
        now = self._now()
        await self._clerk.run(lambda tx: note_findings(tx, found, now, self._asked_every))
