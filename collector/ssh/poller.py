"""Asks hosts over SSH: those without an agent for their reports, those whose agent is silent for the reason.

Runs in an event loop of its own. Which hosts are this collector's is decided by leases in the database; a host
is asked only while its lease holds, and by one task at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from collector.config import Config
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.ingest.door import Door
from collector.ingest.items import HelloNeeded, HelloRefused
from collector.ssh.connection import Dialer
from collector.ssh.failure import ProbeFailure
from collector.ssh.links import Links
from collector.ssh.look import Found, Look, Policy, look
from collector.ssh.measure import Measured
from collector.ssh.notes import Notes
from collector.ssh.parse import NotAProbe
from collector.ssh.polled import PolledHost
from collector.ssh.roster import Asked, Moves, Roster
from collector.ssh.schedule import Schedule, next_turn
from collector.ssh.silent import SilentAgent
from collector.ssh.slots import Slots
from collector.ssh.target import Resolver
from collector.ssh.trust import TrustedKeys
from collector.store.clerk import Clerk
from collector.store.diagnoses import Finding
from collector.store.errors import StoreError, StoreUnavailable
from collector.store.hosts import load_heard
from collector.store.ssh_shares import LEASE, RENEW, Poller, give_back_shares, share_of
from collector.store.statuses import load_layouts
from collector.store.store import Store, Transaction
from fleetpulse.config import ConfigError
from fleetpulse.model import Layout

_LOOK = 2.0  # seconds between two looks at the database
_REREAD = 60.0  # seconds after which policy is read again though nobody said that it has changed
_MARGIN = 1.0  # seconds before its end in which a lease is not used any more
_MOST_LINKS = 10_000  # connections kept open; a process may have 20,000 files
_WAITING = 100  # jobs for the database
_DELAY = 1_000  # milliseconds that a report may be late
_LAST_WORDS = 3.0  # seconds for the database at the end

log = structlog.get_logger()


class SshPoller:
    """One poller. `now` is the collectors' time in milliseconds; `note_store` hears how the database is."""

    def __init__(
        self,
        config: Config,
        store: Store,
        door: Door,
        me: Poller,
        now: Callable[[], int],
        note_store: Callable[[StoreError | None], None],
    ):
        self._config = config
        self._me = me
        self._door = door
        self._now = now
        self._note_store = note_store
        self._clerk = Clerk(store, "ssh-clerk", _WAITING)
        self._notes = Notes(self._clerk, now, note_store, config.ssh.fallback_interval.milliseconds)
        self._resolver = Resolver(config.ssh)
        self._roster = Roster(self._resolver, config.name, has_credentials=config.ssh.has_credentials)
        self._links = Links(Dialer(self._resolver, TrustedKeys()), _MOST_LINKS)
        self._slots = Slots(config.ssh.concurrency)
        self._schedule = Schedule()
        self._wake = asyncio.Event()
        self._policy: Policy | None = None
        self._policy_read = -_REREAD
        self._is_owed = False  # whom to poll has changed, and is not in effect yet
        self._trust: tuple[object, ...] = ()
        self._shares: frozenset[int] = frozenset()
        self._held_until = 0.0  # of the loop's clock; before that nobody else asks our hosts
        self._renewed = -1.0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._problem = ""
        self.counts: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. A database that is away is waited for, as everybody does."""
        loops = [
            asyncio.create_task(work)
            for work in (self._look_again(), self._ask(), self._notes.keep_writing())
        ]
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({*loops, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*loops, stopping, *self._tasks.values()):
            task.cancel()
        await asyncio.gather(*loops, *self._tasks.values(), return_exceptions=True)
        self._links.drop_all()
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._clerk.run(lambda tx: give_back_shares(tx, self._me))
        self._clerk.close(0)
        for task in done - {stopping}:
            task.result()  # a defect: it is told, and the service ends

    # What there is to do.

    async def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._look(began)
            except StoreUnavailable as error:
                self._note_store(error)
            except (StoreError, ConfigError) as error:
                # Nobody else is the worse for it: reports are taken in, and who is silent is found.
                self._complain(str(error))
            else:
                self._note_store(None)
                self._complain("")
            await asyncio.sleep(max(0.1, began + _LOOK - loop.time()))

    async def _look(self, began: float) -> None:
        is_due = began - self._renewed >= RENEW / 1000 or not self._shares
        held = None if is_due else self._shares
        is_old = began - self._policy_read >= _REREAD or self._policy is None
        version = None if is_old or self._policy is None else self._policy.version
        now = self._now()
        found = await self._clerk.run(lambda tx: look(tx, self._me, held, version, now))
        if is_due:
            self._renewed = began
            self._held_until = began + LEASE / 1000 - _MARGIN
        has_moved = found.shares != self._shares
        self._shares = found.shares
        if found.policy is not None:
            self._policy, self._policy_read = found.policy, began
            self._trust_anew(found.policy)
            self._is_owed = True
        if has_moved:
            self._is_owed = True
            self._follow(self._roster.leave_others(found))
        assert self._policy is not None
        if not self._resolver.is_ready(self._roster.names(found, self._policy)):
            return  # leases go on; who is there is asked as before
        if self._is_owed:
            await self._take_polled(found, self._policy)
            self._is_owed = False
        self._follow(self._roster.take_silent(found, self._policy))

    def _trust_anew(self, policy: Policy) -> None:
        """Use the keys that are trusted now. Connections made by others are closed."""
        files = self._config.ssh.known_hosts
        trust = (tuple(policy.known_hosts), *(_stamp(path) for path in files))
        if trust == self._trust:
            return
        try:
            trusted = TrustedKeys(policy.known_hosts, files)
        except ConfigError as error:
            log.error("only the keys in the database are trusted", error=str(error))  # noqa: TRY400 - the admin's file
            trusted = TrustedKeys(policy.known_hosts)
        self._links.dialer.trusted = trusted
        self._trust = trust
        self._links.drop_all()

    async def _take_polled(self, found: Look, policy: Policy) -> None:
        new = self._roster.newcomers(found, policy)

        def read(tx: Transaction) -> tuple[dict[int, Layout], dict[int, int]]:
            return load_layouts(tx, new), load_heard(tx, new)

        layouts, heard = await self._clerk.run(read, write=False) if new else ({}, {})
        self._follow(self._roster.take_polled(found, policy, layouts, heard, self._now()))

    def _follow(self, moves: Moves) -> None:
        loop_now = asyncio.get_running_loop().time()
        for host in moves.left:
            self._schedule.drop(host)
            self._links.drop(host)
            if host in self._tasks:
                self._tasks[host].cancel()
        for host, delay in moves.due.items():
            if host not in self._tasks:
                self._schedule.put(host, loop_now + delay)
        for one, diagnosis in moves.findings:
            finding = Finding(one.host, one.name, one.received_at, diagnosis, is_polled=one.is_polled)
            self._notes.add(Found(finding, one.address))
        self._wake.set()

    # Asking.

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            now = loop.time()
            for host in self._schedule.take(now):
                if host not in self._tasks:
                    task = asyncio.create_task(self._take_turn(host, now))
                    self._tasks[host] = task
                    task.add_done_callback(partial(self._end_turn, host))
            due = self._schedule.next_due
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - loop.time())):
                    await self._wake.wait()

    def _end_turn(self, host: int, task: asyncio.Task[None]) -> None:
        if self._tasks.get(host) is task:
            del self._tasks[host]
        if self._roster.get(host) is not None and host not in self._schedule:
            # It was left and is to be asked again, both while this turn was on.
            self._schedule.put(host, asyncio.get_running_loop().time())
            self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("asking a host over SSH failed by a defect", host=host, exc_info=error)

    async def _take_turn(self, host: int, due: float) -> None:
        asked = self._roster.get(host)
        if asked is None:
            return
        is_polled = isinstance(asked, PolledHost)
        interval = asked.target.interval if is_polled else float(self._config.ssh.fallback_interval)
        try:
            await self._ask_one(asked)
        except (StoreError, HelloNeeded) as error:
            log.info("a poll could not be stored", host=asked.target.name, error=str(error))
        except HelloRefused as error:
            log.info("not polled any more", host=asked.target.name, reason=str(error))
            self._policy_read = -_REREAD
        finally:
            if self._roster.get(host) is asked:
                self._schedule.put(host, next_turn(due, interval, asyncio.get_running_loop().time()))
                self._wake.set()

    async def _ask_one(self, asked: Asked) -> None:
        target = asked.target
        async with self._slots.hold(target.limited_groups, is_suspect=asked.is_suspect):
            loop = asyncio.get_running_loop()
            if loop.time() >= self._held_until or share_of(target.host) not in self._shares:
                return
            self.counts["polls"] += 1
            try:
                async with asyncio.timeout_at(self._held_until):
                    measured = await self._measure(asked)
            except TimeoutError:
                return  # the lease is over, and somebody else asks
            except ProbeFailure as failure:
                self.counts["failed"] += 1
                answer: Measured | ProbeFailure = failure
            else:
                answer = measured
        if isinstance(asked, PolledHost):
            await self._tell_polled(asked, answer)
        else:
            await self._tell_silent(asked, answer)

    async def _measure(self, asked: Asked) -> Measured:
        began = time.monotonic()
        answer = await self._links.ask(asked.target, with_agent=isinstance(asked, SilentAgent))
        try:
            return asked.measurer.measure(answer.output, time.monotonic() - began)
        except NotAProbe as error:
            said = str(error) if answer.output else answer.complaint.decode(errors="replace").strip()
            text = f"{asked.target.place}: what it printed is no probe's answer: {said or 'nothing'}"
        except Exception as error:  # whatever one host prints, it is told of that host
            log.exception("a probe's answer met a defect", host=asked.target.name)
            text = f"{asked.target.place}: its answer met a defect of the collector ({type(error).__name__})"
        raise ProbeFailure(DiagnosisKind.PROBE_FAILED, text)

    async def _tell_polled(self, polled: PolledHost, answer: Measured | ProbeFailure) -> None:
        if isinstance(answer, ProbeFailure):
            if not await polled.fail(self._door, answer, self._now):
                # It was heard by somebody else since, before it became ours.
                host = polled.target.host
                heard = await self._clerk.run(lambda tx: load_heard(tx, [host]), write=False)
                polled.heard_at = heard.get(host, polled.heard_at)
                await polled.fail(self._door, answer, self._now)
            self._find(polled, answer.diagnosis, address=answer.address)
        else:
            await polled.report(self._door, answer, self._now)

    async def _tell_silent(self, silent: SilentAgent, answer: Measured | ProbeFailure) -> None:
        now = self._now()
        if isinstance(answer, ProbeFailure):
            silent.is_suspect = True
            self._find(silent, answer.diagnosis, address=answer.address)
            return
        silent.is_suspect = False
        target = silent.target
        counts = await self._door.tell(
            target.host, target.host_id, target.name, silent.report(answer, now), silent.heard_at, now
        )
        if counts:  # else its agent has spoken meanwhile
            self._find(silent, silent.diagnose(answer, now), has_health=True)

    def _find(
        self, asked: Asked, diagnosis: Diagnosis, *, has_health: bool = False, address: str = ""
    ) -> None:
        target = asked.target
        is_polled = isinstance(asked, PolledHost)
        finding = Finding(target.host, target.name, asked.heard_at, diagnosis, has_health, is_polled)
        self._notes.add(Found(finding, address or target.address, self._missing_since(asked)))

    def _missing_since(self, asked: Asked) -> int:
        """When the host should have been heard and was not; of one that never was, since it was asked before."""
        if not asked.heard_at:
            return self._now() - round(1.5 * self._config.ssh.fallback_interval.milliseconds)
        return asked.heard_at + asked.report_interval + _DELAY

    def _complain(self, problem: str) -> None:
        if problem and problem != self._problem:
            log.error("hosts are asked over SSH as before", error=problem)
        self._problem = problem


def _stamp(path: Path) -> tuple[str, int]:
    try:
        return str(path), path.stat().st_mtime_ns
    except OSError:
        return str(path), 0
