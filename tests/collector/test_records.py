"""Renaming, rebinding and revoking, on both kinds of database, with the writers that notice."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from collector.core.rules import RuleSet
from collector.core.status import CheckStatus, Event, EventKind, HostRecord, Silence
from collector.ingest.batch import Answer, BatchWriter
from collector.ingest.items import HelloNeeded, Item, Registered, Registration, Submission
from collector.store import hosts, records, statuses
from collector.store.certificates import CertificateRow, add_certificate, load_certificates
from collector.store.conflicts import ConflictRow, load_conflicts, save_conflict
from collector.store.errors import StoreConflict
from collector.store.event_log import Filter, load_events
from collector.store.ssh_hosts import load_version
from collector.store.ssh_known_hosts import add_known_hosts, load_known_hosts
from collector.store.store import Store
from collector.store.tokens import NewToken, add_tokens, find_tokens
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, Report, State
from tests.collector.fleet import LAYOUT, MINUTE, Fleet, failing, record

OTHER_LAYOUT = Layout(
    (
        CheckLayout(CheckKey("cpu"), (Measurement("system.cpu.utilization", "1"),)),
        CheckLayout(CheckKey("filesystem", "/srv"), (Measurement("system.filesystem.utilization", "1"),)),
    )
)


@pytest.fixture
def fleet(store: Store) -> Fleet:
    return Fleet(store)


class Collector:
    """The writer of one collector, whose agent repeats what could not be committed."""

    def __init__(self, store: Store, now: Callable[[], int]):
        self._loop = asyncio.new_event_loop()
        self._writer = BatchWriter(store, lambda: RuleSet(()), now)
        self._now = now
        self._streams: dict[int, tuple[str, str]] = {}

    def close(self) -> None:
        self._loop.close()

    def hello(self, identity: HostRecord, epoch: int) -> Registered:
        answer = self._apply(Registration(identity, epoch, self._now(), self._loop.create_future()))
        assert isinstance(answer, Registered)
        self._streams[answer.host] = (answer.name, identity.instance)
        return answer

    def report(
        self, host: int, epoch: int, seq: int, layout: Layout = LAYOUT, state: State | None = None
    ) -> Answer:
        """A report in which everything is fine, or the first check says otherwise."""
        results = () if state is None else (CheckResult(0, state, "it says"),)
        told = Report(seq, self._now(), layout, (0.1,) * layout.series_count, results)
        name, instance = self._streams[host]
        done = self._loop.create_future()
        return self._apply(Submission(host, name, instance, epoch, [told], None, self._now(), done))

    def _apply(self, item: Item) -> Answer:
        for _ in range(5):
            try:
                return self._writer.apply([item])[0]
            except StoreConflict:
                self._writer.forget([item])
        raise AssertionError("never committed")


@pytest.fixture
def collector(fleet: Fleet) -> Iterator[Collector]:
    made = Collector(fleet.store, lambda: fleet.now)
    yield made
    made.close()


@pytest.mark.parametrize("other", [False, True])
def test_trusted_keys_go_with_the_name(fleet: Fleet, other: bool) -> None:
    host, _ = fleet.add("web-1")
    if other:
        fleet.add("web-1")
    stored = [
        "web-1 ssh-ed25519 A",
        "web-1,192.0.2.7 ssh-ed25519 B",
        "[web-1]:2222 ssh-ed25519 C",
        "@revoked web-1 ssh-ed25519 D",
        "web-* ssh-ed25519 E",
        "web-10 ssh-ed25519 F",
    ]
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, stored, 1)
        before = load_version(tx)
        records.rename_host(tx, host, "db-1", fleet.now)
    with fleet.store.transaction(write=False) as tx:
        names = {line.rpartition(" ")[2]: line.rpartition(" ssh-")[0] for line in load_known_hosts(tx)}
        assert load_version(tx) != before
    assert names == {
        "A": "web-1,db-1" if other else "db-1",
        "B": "web-1,192.0.2.7,db-1" if other else "db-1,192.0.2.7",
        "C": "[web-1]:2222,[db-1]:2222" if other else "[db-1]:2222",
        "D": "@revoked web-1,db-1",
        "E": "web-*",
        "F": "web-10",
    }


@pytest.mark.parametrize("name", ["*", "a b", "a,b", "!a"])
def test_a_name_that_means_others_as_well_gets_no_keys(fleet: Fleet, name: str) -> None:
    host, _ = fleet.add("web-1")
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, ["web-1 ssh-ed25519 A"], 1)
        records.rename_host(tx, host, name, fleet.now)
        assert load_known_hosts(tx) == ["web-1 ssh-ed25519 A"]


def certificate(host: int, number: int) -> CertificateRow:
    return CertificateRow(bytes([number]) * 32, host, b"i" * 32, number, 2**45)


def token(host: int, number: int) -> NewToken:
    return NewToken(bytes([number]) * 32, "name", host, ("g",), 1, 1, 2**45)


def rival(host: int, address: str) -> ConflictRow:
    return ConflictRow(host, address.encode().ljust(16), "double", address, "m", "hw", "b", "i", 1, 2)


def kinds(fleet: Fleet, host: int) -> Counter[str]:
    with fleet.store.transaction() as tx:
        return Counter(event.kind for event in load_events(tx, Filter(host=host), 100))


def rebind(fleet: Fleet, old: int, new: int) -> None:
    with fleet.store.transaction() as tx:
        records.rebind(tx, old, new, fleet.now)


def stored(fleet: Fleet, host_id: str) -> hosts.StoredHost:
    with fleet.store.transaction() as tx:
        return hosts.find_hosts(tx, [host_id])[host_id]


def checks(fleet: Fleet, host: int) -> dict[CheckKey, CheckStatus]:
    with fleet.store.transaction() as tx:
        return dict(statuses.load_statuses(tx, [host])[host].status.checks)


# --- rename ---


def test_a_renamed_host_keeps_its_own_name_until_it_has_that_again(fleet: Fleet) -> None:
    host, identity = fleet.add("localhost")
    with fleet.store.transaction() as tx:
        assert records.rename_host(tx, host, "kiosk-3", fleet.now) == "localhost"
    known = stored(fleet, identity.host_id)
    assert (known.name, known.own_name, known.record.hostname) == ("kiosk-3", "localhost", "localhost")
    with fleet.store.transaction() as tx:
        assert records.rename_host(tx, host, "kiosk-4", fleet.now) == "kiosk-3"
        assert records.rename_host(tx, host, "kiosk-4", fleet.now) == "kiosk-4"
    assert stored(fleet, identity.host_id).own_name == "localhost"
    with fleet.store.transaction() as tx:
        records.rename_host(tx, host, "localhost", fleet.now)
        events = load_events(tx, Filter(host=host, kinds=(EventKind.RENAMED,)), 10)
    assert (stored(fleet, identity.host_id).name, stored(fleet, identity.host_id).own_name) == (
        "localhost",
        "",
    )
    assert [(event.hostname, event.old, event.new) for event in events] == [
        ("kiosk-3", "localhost", "kiosk-3"),
        ("kiosk-4", "kiosk-3", "kiosk-4"),
        ("localhost", "kiosk-4", "localhost"),
    ]


def test_a_host_renamed_while_it_reports_loses_nothing(fleet: Fleet, collector: Collector) -> None:
    identity = record("localhost")
    host = collector.hello(identity, 7).host
    assert collector.report(host, 7, 1) == 1
    with fleet.store.transaction() as tx:
        records.rename_host(tx, host, "kiosk-3", fleet.now)
    # Its stream begins anew, so that nothing is written under the old name.
    assert isinstance(collector.report(host, 7, 2), HelloNeeded)
    again = collector.hello(record("localhost", host_id=identity.host_id), 7)
    assert (again.host, again.committed_seq, again.name) == (host, 1, "kiosk-3")
    assert collector.report(host, 7, 2) == 2
    assert kinds(fleet, host) == {"added": 1, "renamed": 1}


def test_a_host_that_is_gone_cannot_be_changed(fleet: Fleet) -> None:
    host, _ = fleet.add("one")
    for change in (
        lambda tx: records.rename_host(tx, 999, "x", 1),
        lambda tx: records.rebind(tx, host, 999, 1),
        lambda tx: records.rebind(tx, 999, host, 1),
    ):
        with pytest.raises(StoreConflict), fleet.store.transaction() as tx:
            change(tx)


# --- rebind ---


def test_a_rebound_record_is_the_new_machine_with_the_old_history(fleet: Fleet) -> None:
    old, before = fleet.add(
        "web-17",
        ago=50 * MINUTE,
        silence=Silence.ALONE,
        checks=failing(State.CRITICAL, "full", 5),
        facts={"os.version": "11"},
        groups=("lab-3",),
    )
    new, machine = fleet.add(
        "localhost",
        ago=MINUTE // 2,
        facts={"os.version": "12"},
        address="192.0.2.99",
        machine_id="reinstalled",
        hardware_id="same hardware",
        boot_id="another",
        instance="run",
        collector="c1",
        interval=5_000,
        ttl=20_000,
        agent_version="0.2.0",
    )
    fleet.event(old, "web-17", Event(1, EventKind.SILENT))
    fleet.event(new, "localhost", Event(2, EventKind.ADDED))
    with fleet.store.transaction() as tx:
        hosts.assign_groups(tx, old, ["kept"])
        hosts.assign_groups(tx, new, ["dropped"])
        for row in (certificate(old, 1), certificate(new, 2), certificate(new, 3)):
            add_certificate(tx, row)
        for conflict in (rival(old, "10.0.0.1"), rival(new, "10.0.0.1"), rival(new, "10.0.0.2")):
            save_conflict(tx, conflict)
        add_tokens(tx, [token(old, 1), token(new, 2)])
        marks = tx.query("SELECT epoch, seq, received_at, measured_at FROM host_seen WHERE host = %s", (new,))
        version = tx.query("SELECT version FROM host_seen WHERE host = %s", (old,))[0][0]
    rebind(fleet, old, new)
    known = stored(fleet, machine.host_id)
    assert (known.host, known.name, known.own_name) == (old, "web-17", "localhost")
    assert known.record == replace(machine, groups=("kept", "lab-3"))
    with fleet.store.transaction() as tx:
        assert hosts.find_hosts(tx, [before.host_id]) == {}
        assert tx.query("SELECT id FROM host") == [(old,)]
        assert tx.query("SELECT epoch, seq, received_at, measured_at FROM host_seen") == marks
        assert tx.query("SELECT version, silence FROM host_seen") == [(version + 1, 0)]
        assert hosts.load_facts(tx, old) == {"os.version": "11"}
        found = load_certificates(tx, [old, new])
        assert [(row.fingerprint[0], row.revoked_at) for row in found[old]] == [
            (3, None),
            (2, None),
            (1, fleet.now),
        ]
        assert {row.address for row in load_conflicts(tx)[old]} == {"10.0.0.1", "10.0.0.2"}
        ended = find_tokens(tx, [bytes([1]) * 32, bytes([2]) * 32]).values()
        assert [(row.host, row.expires_at) for row in ended] == [(old, fleet.now)] * 2
        events = load_events(tx, Filter(host=old), 10)
    assert checks(fleet, old)[CheckKey("filesystem", "/home")] == CheckStatus(State.CRITICAL, 5, "full")
    assert [event.kind for event in events] == ["silent", "added", "rebound", "back"]
    assert (events[2].old, events[2].new, events[2].hostname) == (before.host_id, machine.host_id, "web-17")
    assert "localhost" in events[2].message


@pytest.mark.parametrize("layout", [LAYOUT, OTHER_LAYOUT], ids=["same layout", "another layout"])
def test_the_next_report_is_compared_with_the_old_history(
    fleet: Fleet, collector: Collector, layout: Layout
) -> None:
    old, _ = fleet.add("web-17", ago=50 * MINUTE, silence=Silence.ALONE)
    machine = record("web-17")
    new = collector.hello(machine, 9).host
    for seq in (1, 2):
        assert collector.report(new, 9, seq, layout) == seq
    rebind(fleet, old, new)
    # The stream that is open learns that its host is another, and nothing it sent is lost or counts twice.
    assert isinstance(collector.report(new, 9, 3, layout), HelloNeeded)
    assert collector.hello(machine, 9)[:3] == (old, 2, "web-17")
    before = kinds(fleet, old)
    assert collector.report(old, 9, 2, layout) == 2
    assert kinds(fleet, old) == before
    assert collector.report(old, 9, 3, layout) == 3
    assert collector.report(old, 9, 4, layout, State.CRITICAL) == 4
    assert set(checks(fleet, old)) == {check.key for check in layout.checks}
    expected = Counter(rebound=1, back=1, added=1, state=1)
    if layout is not LAYOUT:
        expected.update({"check-removed": 1})  # the other is known from the record that ended
    assert kinds(fleet, old) == expected


def test_a_state_of_a_check_that_only_the_new_record_has_goes_on(fleet: Fleet, collector: Collector) -> None:
    """A change that comes with the next report is told, and one that was told before is not told again."""
    layout = Layout(
        tuple(CheckLayout(CheckKey(name), (Measurement(name, "1"),)) for name in ("swing", "cpu"))
    )
    old, _ = fleet.add(
        "web-17", ago=50 * MINUTE, checks={CheckKey("cpu"): CheckStatus(State.WARNING, 5, "hot")}
    )
    machine = record("web-17")
    new = collector.hello(machine, 9).host
    assert collector.report(new, 9, 1, layout, State.CRITICAL) == 1
    rebind(fleet, old, new)
    assert checks(fleet, old)[CheckKey("swing")].state is State.CRITICAL
    assert checks(fleet, old)[CheckKey("cpu")] == CheckStatus(State.WARNING, 5, "hot")
    collector.hello(machine, 9)
    assert collector.report(old, 9, 2, layout) == 2
    with fleet.store.transaction() as tx:
        told = load_events(tx, Filter(host=old, kinds=(EventKind.STATE,)), 100)
    assert [(event.subject, event.new) for event in told if event.subject == "swing"] == [
        ("swing", "CRITICAL"),
        ("swing", "OK"),
    ]
    assert not kinds(fleet, old)["check-appeared"]


def test_a_record_without_history_gets_that_of_the_machine(fleet: Fleet, collector: Collector) -> None:
    expected, _ = fleet.add("web-17", ago=None)
    machine = record("localhost")
    new = collector.hello(machine, 9).host
    assert collector.report(new, 9, 1) == 1
    assert collector.report(new, 9, 2, LAYOUT, State.CRITICAL) == 2
    rebind(fleet, expected, new)
    assert checks(fleet, expected)[CheckKey("cpu")].state is State.CRITICAL
    with fleet.store.transaction() as tx:
        assert statuses.load_latest(tx, [expected])[expected].results[0].message == "it says"
    assert collector.hello(machine, 9)[:2] == (expected, 2)
    assert collector.report(expected, 9, 3) == 3
    assert kinds(fleet, expected) == Counter(added=1, rebound=1, state=2)


def test_a_machine_that_has_not_reported_yet(fleet: Fleet, collector: Collector) -> None:
    old, _ = fleet.add("web-17", ago=50 * MINUTE, silence=Silence.ALONE)
    new, machine = fleet.add("localhost", ago=None)
    rebind(fleet, old, new)
    with fleet.store.transaction() as tx:
        assert tx.query("SELECT epoch, seq, received_at, silence FROM host_seen") == [
            (0, 0, fleet.now - 50 * MINUTE, Silence.ALONE)
        ]
    assert collector.hello(machine, 11)[:2] == (old, 0)
    assert collector.report(old, 11, 1) == 1
    assert kinds(fleet, old) == {"rebound": 1, "back": 1, "new-epoch": 1}


@pytest.mark.parametrize("old_silence", Silence)
@pytest.mark.parametrize("new_silence", Silence)
def test_who_was_announced_as_silent_comes_back_once(
    fleet: Fleet, collector: Collector, old_silence: Silence, new_silence: Silence
) -> None:
    old, _ = fleet.add("web-17", ago=50 * MINUTE, silence=old_silence)
    new, machine = fleet.add("localhost", ago=40 * MINUTE, silence=new_silence)
    rebind(fleet, old, new)
    epoch = 7  # of a host that the fleet adds
    committed = collector.hello(machine, epoch).committed_seq
    assert collector.report(old, epoch, committed + 1) == committed + 1
    assert kinds(fleet, old)["back"] == (Silence.ALONE in (old_silence, new_silence))


def test_the_old_machine_is_not_heard_any_more(fleet: Fleet, collector: Collector) -> None:
    was = record("web-17")
    old = collector.hello(was, 5).host
    assert collector.report(old, 5, 1) == 1
    new = collector.hello(record("web-17"), 9).host
    rebind(fleet, old, new)
    assert isinstance(collector.report(old, 5, 2), HelloNeeded)
    assert checks(fleet, old)[CheckKey("cpu")].state is State.OK


def test_a_machine_rebound_while_it_reports_loses_nothing(fleet: Fleet) -> None:
    """Writers of two collectors, an admin, and one machine: every report takes effect once."""
    old, _ = fleet.add("web-17", ago=50 * MINUTE)
    machine = record("localhost")
    reported = threading.Event()
    collectors = [Collector(fleet.store, lambda: fleet.now) for _ in range(2)]

    def agent() -> None:
        for seq in range(1, 61):
            collector = collectors[seq // 10 % 2]
            if seq == 1 or seq % 10 == 0:
                host = collector.hello(machine, 9).host
            if seq == 15:
                reported.set()
            while isinstance(answer := collector.report(host, 9, seq, LAYOUT, State(seq % 2)), HelloNeeded):
                host, committed, *_ = collector.hello(machine, 9)
                assert committed == seq - 1
            assert answer == seq

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(agent)
        assert reported.wait(30)
        new = stored(fleet, machine.host_id).host
        for _ in range(100):  # the agent never pauses
            try:
                rebind(fleet, old, new)
                break
            except StoreConflict:
                continue
        running.result(30)
    for collector in collectors:
        collector.close()
    found = stored(fleet, machine.host_id)
    assert (found.host, found.name) == (old, "web-17")
    # The state changes with every report, once; but not with the first after the rebinding if that is OK, as
    # the old record was.
    assert kinds(fleet, old)["state"] in (59, 60)


# --- revoke ---


def test_a_revoked_host_has_no_certificate_and_no_token(fleet: Fleet) -> None:
    host, _ = fleet.add("web-17")
    other, _ = fleet.add("web-18")
    with fleet.store.transaction() as tx:
        for row in (certificate(host, 1), certificate(host, 2), certificate(other, 3)):
            add_certificate(tx, row)
        add_tokens(tx, [token(host, 1), token(other, 2)])
    with fleet.store.transaction() as tx:
        assert records.revoke(tx, host, "web-17", fleet.now) == 2
    with fleet.store.transaction() as tx:
        assert records.revoke(tx, host, "web-17", fleet.now + 1) == 0
        found = load_certificates(tx, [host, other])
        assert {row.revoked_at for row in found[host]} == {fleet.now}
        assert found[other][0].revoked_at is None
        ended, valid = find_tokens(tx, [bytes([1]) * 32, bytes([2]) * 32]).values()
        assert not ended.is_valid(fleet.now)
        assert valid.is_valid(fleet.now)
    assert kinds(fleet, host) == {"revoked": 1}
