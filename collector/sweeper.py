"""One thread that looks after time: heartbeats, the clock, silent hosts, and what is too old to keep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

import structlog

from collector.clock import Clock
from collector.core.identity import QUARANTINE, place_of
from collector.core.silence import FleetSilence, Sweep, sweep
from collector.core.status import Event, EventKind, Silence
from collector.store import certificates, collectors, conflicts, hosts, silence, upkeep
from collector.store.collectors import HEARTBEAT_INTERVAL, CollectorRow
from collector.store.errors import StoreConflict, StoreError, StoreLocked
from collector.store.statuses import write_events
from collector.store.store import Store, Transaction
from collector.store.timekeeping import agree_on_time

_UPKEEP_INTERVAL = 600.0  # seconds

# Milliseconds between two heartbeats of this collector after which it was not listening. Less than
# what others grant it: a database that stalls holds up its reports too, and the first look after that
# must not take the whole fleet for silent.
_STALL = 2 * HEARTBEAT_INTERVAL

# Milliseconds by which this collector's clock may be behind another's: what a heartbeat's way takes.
_CLOCK_TOLERANCE = 500

_CLOCK_DIFFERENCE = 5_000  # milliseconds between our clock and the system's that are worth a warning

_LONG_AWAY = 86_400_000  # milliseconds; a clock that is years ahead must not delete what is years old by it
_BRAKE = 86_400.0  # seconds that an admin has to set such a clock before anything old is deleted

_REVOKED_LATELY = 60_000  # milliseconds; whoever was about to be admitted then has a session by now
_REMEMBERED = (
    30 * 86_400_000
)  # milliseconds for which it is told why an ended token or certificate is refused

_JOIN_ATTEMPTS = 10

log = structlog.get_logger()


class Sweeper(threading.Thread):
    """Writes this collector's heartbeat, and announces silence and revocations, every `interval` seconds.

    `on_revoked` is told the fingerprints of certificates that were revoked lately, most of them several times.

    Both need the database, so while that is away the heartbeats stop: readers then know that
    nobody was listening, and no host is called stale for it.
    """

    def __init__(
        self,
        store: Store,
        me: CollectorRow,
        clock: Clock,
        on_outcome: Callable[[StoreError | None], None],
        *,
        interval: float,
        fleet_share: float,
        fleet_minimum: int,
        event_retention: int,
        failing_for: Callable[[], float] = lambda: 0.0,
        on_revoked: Callable[[Collection[bytes]], None] = lambda _: None,
    ):
        super().__init__(name="sweeper", daemon=True)
        self._on_revoked = on_revoked
        self._revoked_since = 0
        self._failing_for = failing_for
        self._store = store
        self._me = me
        self._clock = clock
        self._on_outcome = on_outcome
        self._interval = interval
        self._fleet_share = fleet_share
        self._fleet_minimum = fleet_minimum
        self._event_retention = event_retention
        self._stopping = threading.Event()
        self._stalled_until = 0  # when a heartbeat last came after a gap, or while a writer was failing
        self._next_upkeep = time.monotonic()
        self._warned_of = 0  # how far the system's clock was off when that was last told

    def join_collectors(self, admit: Callable[[Transaction], None] = lambda _: None) -> None:
        """Agree with the other collectors on the time, and become one of them. Raises StoreError.

        Before that, nothing may be stored that carries a time. `admit` may look at the others and raise;
        of two collectors that start at once, the second sees the first.
        """
        for attempt in range(_JOIN_ATTEMPTS):
            try:
                self._join_collectors(admit)
            except StoreConflict:
                if attempt == _JOIN_ATTEMPTS - 1:
                    raise
            else:
                return

    def _join_collectors(self, admit: Callable[[Transaction], None]) -> None:
        with self._store.transaction() as tx:
            agreed = agree_on_time(tx, self._me.name, self._clock.now())
            admit(tx)
            jump = agreed.now - self._clock.now() if agreed.others else 0
            if agreed.others:
                self._clock.go_on_from(agreed.now)
            me = self._me._replace(listening_since=agreed.now, heartbeat_at=agreed.now)
            collectors.heartbeat(tx, me)
        self._me = me
        if agreed.brought_back:
            log.warning(
                "the clock was set back: what was stored in the future counts as heard now",
                hosts=agreed.brought_back,
            )
        if agreed.away > _LONG_AWAY:
            self._brake("no collector was heard for long, or the clock is wrong", agreed.away)
        if abs(jump) > _LONG_AWAY:
            self._brake("the system's clock is not the other collectors'", jump)
        self._watch_system_clock()

    def _brake(self, why: str, milliseconds: int) -> None:
        log.warning("nothing old is deleted for a day", reason=why, days=round(milliseconds / _LONG_AWAY, 1))
        self._next_upkeep = max(self._next_upkeep, time.monotonic() + _BRAKE)

    def run(self) -> None:
        """Until `stop`; a failing database is tried again at the next turn."""
        while not self._stopping.wait(self._interval):
            try:
                self.beat()
                self.look_at_identities()  # first: a revocation is promised to take seconds
                self.sweep()
                if time.monotonic() >= self._next_upkeep:
                    self.look_after_size()
            except StoreLocked as error:
                self._on_outcome(error)
            except StoreConflict as conflict:
                log.info("tries again: others write the same rows", error=str(conflict))
            except StoreError as error:
                self._on_outcome(error)
            else:
                self._on_outcome(None)
        self._note_the_end()

    def look_after_size(self) -> None:
        """Delete a part of what is too old, unless one of the clocks must be wrong."""
        # A little at each turn: a backlog of millions must not keep the heartbeat waiting.
        now, ahead = self._clock.now(), self._clock.behind_system()
        if abs(ahead) > _LONG_AWAY:
            self._brake("the system's clock is not the collectors'", ahead)
            return
        deleted = (
            upkeep.delete_old_events(self._store, now - self._event_retention),
            upkeep.delete_unused_layouts(self._store),
            upkeep.delete_ended_credentials(self._store, now + min(0, ahead) - _REMEMBERED),
        )
        if max(deleted) < upkeep.AT_ONCE:
            self._next_upkeep = time.monotonic() + _UPKEEP_INTERVAL

    def stop(self, patience: float) -> None:
        """End the thread, which writes down that this collector has left; wait at most `patience` seconds."""
        self._stopping.set()
        self.join(patience)
        if self.is_alive():
            log.warning("the database does not answer; readers notice the end by missing heartbeats")

    def _note_the_end(self) -> None:
        now = self._clock.now()
        try:
            with self._store.transaction() as tx:
                collectors.heartbeat(tx, self._me._replace(heartbeat_at=now, stopped_at=now))
        except StoreError as error:
            log.warning("could not note the end in the database", error=str(error))

    def beat(self) -> None:
        """Write the heartbeat. After a gap, and while reports cannot be stored, listening begins anew."""
        with self._store.transaction() as tx:
            now = self._keep_up(collectors.load_time_of_others(tx, self._me.name))
            since = self._me.listening_since
            gap = now - self._me.heartbeat_at
            # A writer that cannot store what hosts say is as deaf as a collector that is not there.
            is_deaf = gap > _STALL or self._failing_for() * 1000 > _STALL
            if is_deaf:
                since = now
            row = self._me._replace(heartbeat_at=now, listening_since=since)
            collectors.heartbeat(tx, row)
        self._me = row
        if is_deaf:
            self._stalled_until = now
        if gap > _STALL:
            log.warning("was not listening", seconds=gap / 1000)
        self._watch_system_clock()

    def _keep_up(self, others: int) -> int:
        """The time now, after going on to that of the others if ours has fallen behind.

        Steady clocks drift apart, and that of a virtual machine stops with it. Nobody ever goes back,
        so all follow the fastest.
        """
        now = self._clock.now()
        if others - now <= _CLOCK_TOLERANCE:
            return now
        log.warning("the clock was behind the other collectors'", seconds=(others - now) / 1000)
        self._clock.go_on_from(others)
        if others - now > _LONG_AWAY:
            self._brake("the clock was not the other collectors'", others - now)
        return others

    def _watch_system_clock(self) -> None:
        off = self._clock.behind_system()
        if abs(off - self._warned_of) > _CLOCK_DIFFERENCE:
            self._warned_of = off
            log.warning(
                "the system's clock differs from the collectors' time, which stays; check NTP",
                ahead_seconds=off / 1000,
            )

    def sweep(self) -> None:
        """Find the hosts that fell silent, and write one event for each, or one for the fleet."""
        now = self._clock.now()
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
                # What stalled us may have stalled the others too, whose rows do not tell yet.
                max(
                    collectors.load_listening_since(tx, now) or self._me.listening_since, self._stalled_until
                ),
                fleet,
                fleet_share=self._fleet_share,
                fleet_minimum=self._fleet_minimum,
            )
        if found.alone or found.with_fleet or found.fleet != fleet:
            with self._store.transaction() as tx:
                self._announce(tx, found, fleet, now)

    def look_at_identities(self) -> None:
        """Tell which certificates were revoked, and end conflicts whose newcomer has not tried for long."""
        now = self._clock.now()
        with self._store.transaction(write=False) as tx:
            revoked = certificates.load_revoked(tx, self._revoked_since - _REVOKED_LATELY)
            ended = conflicts.have_ended(tx, now - QUARANTINE)
        self._revoked_since = now
        if revoked:
            self._on_revoked(revoked)
        if ended:
            with self._store.transaction() as tx:
                self._end_conflicts(tx, now)

    def _end_conflicts(self, tx: Transaction, now: int) -> None:
        over = conflicts.end_conflicts(tx, now - QUARANTINE)
        names = hosts.load_callers(tx, sorted({row.host for row in over}))
        message = f"has not tried for {QUARANTINE // 60_000} min"
        write_events(
            tx,
            [
                (
                    row.host,
                    names[row.host].name,
                    Event(now, EventKind.CONFLICT_OVER, old=str(place_of(row)), message=message),
                )
                for row in over
                if row.host in names
            ],
        )

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
