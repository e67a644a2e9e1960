"""The poller's own bookkeeping: nobody is forgotten, whatever happens while a host is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from collector.config import Config
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.rules import RuleSet
from collector.core.status import HostRecord
from collector.ingest.door import Door
from collector.ingest.writers import Writers
from collector.ssh.failure import ProbeFailure
from collector.ssh.look import Found, Policy
from collector.ssh.measure import HostMeasurer, Measured
from collector.ssh.notes import Notes
from collector.ssh.polled import PolledHost
from collector.ssh.poller import SshPoller
from collector.ssh.roster import Moves
from collector.store.clerk import Clerk
from collector.store.diagnoses import Finding
from collector.store.errors import StoreRefused, StoreUnavailable
from collector.store.hosts import add_hosts, find_hosts, load_facts
from collector.store.records import rename_host
from collector.store.ssh_shares import Poller
from collector.store.store import Store
from fleetpulse.model import State
from tests.collector.fleet import record
from tests.collector.ssh.test_roster import look, silent
from tests.ssh_server import SshServer, real_output


def test_a_host_that_is_left_and_asked_again_while_it_is_asked_is_not_forgotten() -> None:
    """It spoke once and fell silent again between two looks."""

    async def flap() -> None:
        poller = SshPoller(
            Config(), cast("Store", None), cast("Door", None), Poller("c", "r"), lambda: 1, lambda _: None
        )
        policy = Policy("v", (), {}, ())
        poller._roster._has_credentials = True
        poller._follow(poller._roster.take_silent(look(silent(1)), policy))
        [host] = poller._schedule.take(1e12)
        task = asyncio.create_task(asyncio.sleep(3600))
        poller._tasks[host] = task  # type: ignore[assignment]
        task.add_done_callback(lambda done: poller._end_turn(host, done))  # type: ignore[arg-type]
        moves = poller._roster.take_silent(look(silent(1, received_at=2_000_000_000)), policy)
        assert moves == Moves({1: 0.0}, [1])
        poller._follow(moves)
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        assert host in poller._schedule
        assert not poller._tasks

    asyncio.run(flap())


class Polled:
    """A polled host whose reports go to a real database."""

    def __init__(self, store: Store, identity: HostRecord):
        self.store = store
        with store.transaction() as tx:
            add_hosts(tx, [identity], 1)
            self.number = find_hosts(tx, [identity.host_id])[identity.host_id].host
        target = SshServer.target(cast("SshServer", _Nowhere()), host=self.number, host_id=identity.host_id)
        self.host = PolledHost(target, 0, "c1", None)
        self._measurer = HostMeasurer()
        self._output = real_output()

    def report(self, *changes: Callable[[], None], cut: bool = False) -> None:
        """Report once before, and once after each change."""

        async def work() -> None:
            writers = Writers(
                self.store,
                lambda: RuleSet(()),
                lambda: 1,
                lambda _: None,
                number=1,
                batch_reports=9,
                linger=0,
            )
            writers.start()
            door = Door(writers, 9)
            for change in (lambda: None, *changes):
                change()
                await self.host.report(door, self._measure(cut=cut), lambda: 1_000)
            await asyncio.to_thread(writers.close, 10)

        asyncio.run(work())

    def _measure(self, *, cut: bool) -> Measured:
        return self._measurer.measure(self._output[: 300 if cut else None], 0.1)

    def facts(self) -> dict[str, str]:
        with self.store.transaction(write=False) as tx:
            return load_facts(tx, self.number)

    def seq(self) -> int:
        with self.store.transaction(write=False) as tx:
            return int(tx.query("SELECT seq FROM host_seen WHERE host = %s", (self.number,))[0][0])


class _Nowhere:
    addresses = ("192.0.2.7",)
    port = 22
    key_file = None


@pytest.fixture
def polled(store: Store) -> Polled:
    return Polled(store, record("web-1", machine_id="", boot_id="", agent_version=""))


def test_a_host_that_is_renamed_goes_on_under_its_new_name(polled: Polled) -> None:
    def rename() -> None:
        with polled.store.transaction() as tx:
            rename_host(tx, polled.number, "printer-3", 2)

    polled.report(rename)
    assert polled.seq() == 2
    with polled.store.transaction(write=False) as tx:
        assert tx.query("SELECT hostname FROM host") == [("printer-3",)]


def test_its_numbers_go_on_where_the_database_is(polled: Polled) -> None:
    polled.report()
    again = PolledHost(polled.host.target, 0, "c2", None)
    polled.host = again
    polled.report()
    assert polled.seq() == 2
    with polled.store.transaction(write=False) as tx:
        assert tx.query("SELECT kind FROM event") == []


def test_output_that_was_cut_off_takes_no_facts_away(polled: Polled) -> None:
    polled.report()
    known = polled.facts()
    assert known["os.type"] == "linux"
    polled.host = PolledHost(polled.host.target, 0, "c1", None)
    polled._measurer = HostMeasurer()
    polled.report(cut=True)
    assert polled.facts() == known


def test_a_failure_is_told_after_another_collector_has_heard_the_host(polled: Polled) -> None:
    """It does not count at first, because the host was heard since; then it is told of that silence."""
    failure = ProbeFailure(DiagnosisKind.KEY_REFUSED, "no")

    async def work() -> list[bool]:
        writers = Writers(
            polled.store, lambda: RuleSet(()), lambda: 1, lambda _: None, number=1, batch_reports=9, linger=0
        )
        writers.start()
        door = Door(writers, 9)
        late = PolledHost(polled.host.target, 999, "c2", None)
        told = [await late.fail(door, failure, lambda: 2_000)]
        late.heard_at = 1_000
        told.append(await late.fail(door, failure, lambda: 2_000))
        await asyncio.to_thread(writers.close, 10)
        return told

    polled.report()
    assert asyncio.run(work()) == [False, True]
    with polled.store.transaction(write=False) as tx:
        [(state,)] = tx.query("SELECT state FROM check_state WHERE name = %s", ("ssh",))
    assert state == State.UNKNOWN


class _StubbornClerk:
    """A database that refuses one host's finding, and is away at times."""

    def __init__(self) -> None:
        self.is_away = False
        self.written: list[int] = []

    async def run(self, work: Callable[[object], object], *, write: bool = True) -> object:
        if self.is_away:
            raise StoreUnavailable("away")
        return work(self)


def test_one_finding_that_cannot_be_stored_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clerk = _StubbornClerk()

    def store(tx: object, found: list[Found], now: int, asked_every: int) -> None:
        if any(one.finding.host == 2 for one in found):
            raise StoreRefused("too long")
        clerk.written += [one.finding.host for one in found]

    monkeypatch.setattr("collector.ssh.notes.note_findings", store)
    heard: list[object] = []
    notes = Notes(cast("Clerk", clerk), lambda: 1, heard.append, 60_000)
    for host in (1, 2, 3, 1):
        notes.add(Found(Finding(host, "web", 1, Diagnosis(DiagnosisKind.FROZEN, "")), ""))
    clerk.is_away = True
    asyncio.run(notes.write())
    assert len(heard) == 1
    clerk.is_away = False
    asyncio.run(notes.write())
    assert clerk.written == [1, 3]
    asyncio.run(notes.write())
    assert clerk.written == [1, 3]
