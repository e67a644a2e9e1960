"""One thread that looks after time: heartbeats, silent hosts, and what is too old to keep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from collector.core.silence import FleetSilence, Sweep, sweep
from collector.core.status import Event, EventKind, Silence
from collector.store import collectors, silence, upkeep
from collector.store.collectors import HEARTBEAT_INTERVAL, CollectorRow
from collector.store.errors import StoreConflict, StoreError
from collector.store.statuses import write_events
from collector.store.store import Store, Transaction

_UPKEEP_INTERVAL = 600.0  # seconds

# Milliseconds between two heartbeats of this collector after which it was not listening. Less than
# what others grant it: a database that stalls holds up its reports too, and the first look after that
# must not take the whole fleet for silent.
_STALL = 2 * HEARTBEAT_INTERVAL

log = structlog.get_logger()


class Sweeper(threading.Thread):
    """Writes this collector's heartbeat, and announces silence, every `interval` seconds.

    Both need the database, so while that is away the heartbeats stop: readers then know that
    nobody was listening, and no host is called stale for it.
    """

    def __init__(
        self,
        store: Store,
        me: CollectorRow,
        now: Callable[[], int],
        on_outcome: Callable[[StoreError | None], None],
        *,
        interval: float,
        fleet_share: float,
        fleet_minimum: int,
        event_retention: int,
    ):
        super().__init__(name="sweeper", daemon=True)
        self._store = store
        self._me = me
        self._now = now
        self._on_outcome = on_outcome
        self._interval = interval
        self._fleet_share = fleet_share
        self._fleet_minimum = fleet_minimum
        self._event_retention = event_retention
        self._stopping = threading.Event()
        self._next_upkeep = time.monotonic()

    def run(self) -> None:
        """Until `stop`; a failing database is tried again at the next turn."""
        while not self._stopping.wait(self._interval):
            try:
                self.beat()
                self.sweep()
                if time.monotonic() >= self._next_upkeep:
                    self._look_after_size()
            except StoreConflict as conflict:
                log.info("tries again: others write the same rows", error=str(conflict))
            except StoreError as error:
                self._on_outcome(error)
            else:
                self._on_outcome(None)
        self._note_the_end()

    def _look_after_size(self) -> None:
        # A little at each turn: a backlog of millions must not keep the heartbeat waiting.
        before = self._now() - self._event_retention
        deleted = (upkeep.delete_old_events(self._store, before), upkeep.delete_unused_layouts(self._store))
        if max(deleted) < upkeep.AT_ONCE:
            self._next_upkeep = time.monotonic() + _UPKEEP_INTERVAL

    def stop(self, patience: float) -> None:
        """End the thread, which writes down that this collector has left; wait at most `patience` seconds."""
        self._stopping.set()
        self.join(patience)
        if self.is_alive():
            log.warning("the database does not answer; readers notice the end by missing heartbeats")

    def _note_the_end(self) -> None:
        now = self._now()
        try:
            with self._store.transaction() as tx:
                collectors.heartbeat(tx, self._me._replace(heartbeat_at=now, stopped_at=now))
        except StoreError as error:
            log.warning("could not note the end in the database", error=str(error))

    def beat(self) -> None:
        """Write the heartbeat. After a gap, listening begins anew."""
        now = self._now()
        since = self._me.listening_since
        if now - self._me.heartbeat_at > _STALL:
            log.warning("was not listening", seconds=(now - self._me.heartbeat_at) / 1000)
            since = now
        row = self._me._replace(heartbeat_at=now, listening_since=since)
        with self._store.transaction() as tx:
            collectors.heartbeat(tx, row)
        self._me = row

    def sweep(self) -> None:
        """Find the hosts that fell silent, and write one event for each, or one for the fleet."""
        now = self._now()
        if now - self._me.heartbeat_at > _STALL:
            return  # the heartbeat took that long, and so do reports: the next one tells
        with self._store.transaction(write=False) as tx:
            fleet = silence.load_fleet_silence(tx)
            suspects = silence.load_suspects(tx, now)
            if not suspects and not fleet.since:
                return
            found = sweep(
                suspects,
                silence.count_expected(tx),
                now,
                collectors.load_listening(tx).since or self._me.listening_since,
                fleet,
                fleet_share=self._fleet_share,
                fleet_minimum=self._fleet_minimum,
            )
        if found.alone or found.with_fleet or found.fleet != fleet:
            with self._store.transaction() as tx:
                self._announce(tx, found, fleet, now)

    def _announce(self, tx: Transaction, found: Sweep, fleet: FleetSilence, now: int) -> None:
        if silence.load_fleet_silence(tx, lock=True) != fleet:
            return  # another collector was faster; the next look sees what it wrote
        # A host may have reported, or another collector may have announced it, since the look.
        alone = silence.mark(tx, found.alone, Silence.ALONE, now)
        with_fleet = silence.mark(tx, found.with_fleet, Silence.FLEET, now)
        events: list[tuple[int | None, str, Event]] = []
        for host in alone:
            message = f"no report for {(now - host.received_at) / 1000:.1f} s"
            events.append((host.host, host.hostname, Event(now, EventKind.SILENT, message=message)))
            log.info("host silent", host=host.hostname, message=message)
        if found.fleet != fleet:
            silence.save_fleet_silence(tx, found.fleet)
            if found.fleet.since:
                events.append((None, "", Event(now, EventKind.FLEET_SILENT, new=str(len(with_fleet)))))
                log.warning("fleet silent", hosts=len(with_fleet))
            else:
                events.append((None, "", Event(now, EventKind.FLEET_BACK)))
                log.info("fleet back")
        write_events(tx, events)
