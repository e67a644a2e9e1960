"""The poller's thread, with its own event loop: what SSH costs delays no stream of an agent."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import structlog

from collector.config import Config
from collector.health import Health
from collector.ingest.door import Door
from collector.ingest.writers import Writers
from collector.ssh.poller import SshPoller
from collector.store.ssh_shares import Poller
from collector.store.store import Store

_IN_FLIGHT = 2_000  # reports between a poll and its commit
_GATHER = 0.25  # seconds: a commit costs as much as a poll, and reports of half a minute do not spoil by that

log = structlog.get_logger()


class SshService(threading.Thread):
    """Asks hosts over SSH until `stop`. `now` is the collectors' time in milliseconds."""

    def __init__(
        self, config: Config, store: Store, writers: Writers, health: Health, now: Callable[[], int]
    ):
        super().__init__(name="ssh", daemon=True)
        self._config = config
        self._store = store
        self._writers = writers
        self._health = health
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._stopping: asyncio.Event | None = None
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Until `stop`; a defect ends the thread, and is told by the service."""
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()

    def stop(self, patience: float) -> None:
        """End every poll, let the shares go; wait at most `patience` seconds."""
        self._started.wait(patience)
        if self._loop is not None and self._stopping is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stopping.set)
        self.join(patience)
        if self.is_alive():
            log.warning("polling over SSH does not end; other collectors wait for its leases to end")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        poller = SshPoller(
            self._config,
            self._store,
            Door(self._writers, _IN_FLIGHT, _GATHER),
            Poller(self._config.name, uuid.uuid4().hex),
            self._now,
            lambda error: self._health.note(error, "ssh"),
        )
        self.counts = poller.counts
        self._started.set()
        await poller.run(self._stopping)
