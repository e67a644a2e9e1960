"""What SSH says of a host that does not speak itself: it judges, moves no mark, and yields to the host's own word."""

from __future__ import annotations

import asyncio
import math

import pytest

from collector.core import diff
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.diff import Changes
from collector.core.rules import Rule, RuleSet
from collector.core.ssh_settings import POLLED, SshSettings
from collector.core.status import CheckStatus, HostRecord, HostStatus, Silence
from collector.ingest.batch import BatchWriter
from collector.ingest.items import Hearsay, HelloRefused, Registered, Registration, Submission
from collector.store import diagnoses, ssh_hosts
from collector.store.collectors import Listening
from collector.store.diagnoses import Finding, current, save_findings
from collector.store.event_log import Filter, load_events
from collector.store.hosts import add_hosts, remove_host
from collector.store.statuses import load_latest, load_statuses
from collector.store.store import Store
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, Report, State
from tests.collector.fleet import MINUTE, Fleet, record

VALUE = Measurement("m", "1")
RULES = RuleSet([Rule("*", "m", critical=0.9, critical_clear=0.8)])
OWN = Layout((CheckLayout(CheckKey("memory"), (VALUE,)), CheckLayout(CheckKey("temperature"), (VALUE,))))
OVER_SSH = Layout(
    (
        CheckLayout(CheckKey("memory"), (VALUE,)),
        CheckLayout(CheckKey("memory", "new"), (VALUE,)),
        CheckLayout(CheckKey("ssh"), (VALUE,)),
    )
)
NOW = 1_000_000


def heard(*values: float, layout: Layout = OVER_SSH) -> Report:
    return Report(0, NOW, layout, values)


def known_status(**checks: State) -> HostStatus:
    statuses = {CheckKey(name): CheckStatus(state, 1) for name, state in checks.items()}
    return HostStatus(7, 3, 500, 500, layout_id=OWN.id, checks=statuses)


def take(status: HostStatus, report: Report) -> tuple[HostStatus, Changes]:
    changes = Changes()
    return diff.take_hearsay(status, report, RULES.plan(report.layout), NOW, changes), changes


def test_it_judges_the_checks_that_it_lists_and_leaves_the_others() -> None:
    before = known_status(memory=State.OK, temperature=State.CRITICAL)
    after, changes = take(before, heard(0.95, 0.1, 0.1))
    assert after.checks[CheckKey("memory")].state is State.CRITICAL
    assert after.checks[CheckKey("temperature")] is before.checks[CheckKey("temperature")]
    assert [event.kind for event in changes.events] == ["state"]
    assert not after.is_calm


def test_it_moves_no_mark_and_ends_no_silence() -> None:
    before = known_status(memory=State.OK)._replace(silence=Silence.ALONE)
    after, _ = take(before, heard(0.1, 0.1, 0.1))
    assert after[:5] == before[:5]


def test_what_the_agent_does_not_know_does_not_appear() -> None:
    """Its own next report would remove it again. A new instance of what it knows is news."""
    after, _ = take(known_status(memory=State.OK), heard(0.1, 0.95, 0.95))
    assert set(after.checks) == {CheckKey("memory"), CheckKey("memory", "new")}


def test_of_a_host_that_was_never_heard_everything_is_taken() -> None:
    after, _ = take(HostStatus(), heard(0.1, 0.1, 0.1))
    assert len(after.checks) == 3


def test_the_agents_next_report_is_no_storm() -> None:
    before = known_status(memory=State.OK, temperature=State.OK)
    between, _ = take(before, heard(0.1, 0.1, 0.1, layout=OVER_SSH))
    assert CheckKey("memory", "new") in between.checks
    changes = Changes()
    after = diff.take_report(between, Report(4, NOW, OWN, (0.1, 0.1)), RULES.plan(OWN), NOW, changes)
    assert [event.kind for event in changes.events] == ["check-removed"]
    assert set(after.checks) == set(before.checks)


class Machine:
    """A host in a real database, and who writes it."""

    def __init__(self, store: Store, identity: HostRecord):
        self.store = store
        self.identity = identity
        self.writer = BatchWriter(store, lambda: RULES, lambda: NOW)

    async def apply(self, item: Registration | Submission | Hearsay) -> object:
        return self.writer.apply([item])[0]

    def say(self, seq: int, *values: float, received_at: int = NOW) -> int:
        async def work() -> object:
            done = asyncio.get_running_loop().create_future()
            item = Registration(self.identity, 7, received_at, done)
            registered = self.writer.apply([item])[0]
            assert isinstance(registered, Registered)
            report = Report(seq, NOW, OWN, values)
            await self.apply(
                Submission(registered.host, self.identity.hostname, "", 7, (report,), None, received_at, done)
            )
            return registered.host

        host = asyncio.run(work())
        assert isinstance(host, int)
        return host

    def hear(self, host: int, report: Report, heard_at: int) -> object:
        async def work() -> object:
            done = asyncio.get_running_loop().create_future()
            return await self.apply(Hearsay(host, self.identity.hostname, report, heard_at, NOW + 5, done))

        return asyncio.run(work())


@pytest.fixture
def machine(store: Store) -> Machine:
    return Machine(store, record())


def test_it_is_stored_until_the_host_speaks_itself(machine: Machine) -> None:
    host = machine.say(1, 0.1, 0.1)
    assert machine.hear(host, heard(0.95, 0.2, 0.3), NOW) is True
    with machine.store.transaction(write=False) as tx:
        status = load_statuses(tx, [host])[host].status
        assert (status.seq, status.received_at) == (1, NOW)
        assert status.checks[CheckKey("memory")].state is State.CRITICAL
        assert load_latest(tx, [host])[host].values == (0.95, 0.2, 0.3)
    machine.say(2, 0.1, 0.1, received_at=NOW + 1)
    assert machine.hear(host, heard(0.95, 0.2, 0.3), NOW) is False, "the host was heard since"
    with machine.store.transaction(write=False) as tx:
        assert load_statuses(tx, [host])[host].status.checks[CheckKey("memory")].state is State.OK
        assert load_latest(tx, [host])[host].values == (0.1, 0.1)


def test_a_word_without_values_leaves_those_that_are_known(machine: Machine) -> None:
    """Why a polled host could not be asked."""
    host = machine.say(1, 0.1, 0.1)
    layout = Layout((CheckLayout(CheckKey("memory"), ()),))
    said = Report(0, NOW, layout, (), (CheckResult(0, State.UNKNOWN, "frozen"),))
    assert machine.hear(host, said, NOW) is True
    with machine.store.transaction(write=False) as tx:
        assert load_latest(tx, [host])[host].values == (0.1, 0.1)
        assert load_statuses(tx, [host])[host].status.checks[CheckKey("memory")].message == "frozen"


def test_of_a_host_that_was_removed_nothing_is_stored(machine: Machine) -> None:
    host = machine.say(1, 0.1, 0.1)
    with machine.store.transaction() as tx:
        remove_host(tx, host)
    assert Machine(machine.store, machine.identity).hear(host, heard(0.1, 0.1, 0.1), NOW) is False


def polled_hello(machine: Machine, identity: HostRecord) -> object:
    async def work() -> object:
        done = asyncio.get_running_loop().create_future()
        return await machine.apply(Registration(identity, 1, NOW, done, is_polled=True))

    return asyncio.run(work())


def test_a_polled_host_is_not_polled_on_once_an_agent_speaks_for_it(machine: Machine) -> None:
    machine.say(1, 0.1, 0.1)
    answer = polled_hello(machine, record(host_id=machine.identity.host_id, agent_version=POLLED))
    assert isinstance(answer, HelloRefused)
    assert "agent" in str(answer)


def test_a_polled_host_that_was_removed_does_not_come_back(machine: Machine) -> None:
    answer = polled_hello(machine, record(agent_version=POLLED))
    assert isinstance(answer, HelloRefused)
    with machine.store.transaction(write=False) as tx:
        assert tx.query("SELECT COUNT(*) FROM host") == [(0,)]


def test_an_agent_takes_a_polled_record_over_wherever_it_comes_from(store: Store) -> None:
    identity = record(agent_version=POLLED, machine_id="another", address="192.0.2.99")
    with store.transaction() as tx:
        add_hosts(tx, [identity], NOW)
    machine = Machine(store, record(host_id=identity.host_id))
    assert machine.say(1, 0.1, 0.1)


# What was found out.


def found(
    host: int, kind: DiagnosisKind = DiagnosisKind.FROZEN, *, heard_at: int = 5, **more: bool
) -> Finding:
    return Finding(host, "web-1", heard_at, Diagnosis(kind, "evidence"), **more)


def events(store: Store) -> list[tuple[str, str, str]]:
    with store.transaction(write=False) as tx:
        return [(one.kind, one.old, one.new) for one in load_events(tx, Filter(), 100)]


def add(store: Store) -> int:
    host = Fleet(store).add("web-1")[0]
    hear(store, host, 5)
    return host


def hear(store: Store, host: int, at: int) -> None:
    """The host spoke last at that time."""
    with store.transaction() as tx:
        tx.execute("UPDATE host_seen SET received_at = %s WHERE host = %s", (at, host))


def test_each_other_diagnosis_of_a_silence_is_one_event(store: Store) -> None:
    host = add(store)
    for now, kind in ((10, "frozen"), (20, "frozen"), (30, "host dead"), (40, "host key changed")):
        with store.transaction() as tx:
            save_findings(tx, [found(host, DiagnosisKind(kind))], now)
    assert sorted(events(store)) == [
        ("diagnosed", "", "frozen"),
        ("diagnosed", "frozen", "host dead"),
        ("host-key-changed", "host dead", "host key changed"),
    ]
    with store.transaction(write=False) as tx:
        stored = diagnoses.load_diagnoses(tx, [host])
    assert stored[host][3:] == (5, 40, 40, 0)


def test_a_diagnosis_is_of_one_silence_only(store: Store) -> None:
    host = add(store)
    with store.transaction() as tx:
        save_findings(tx, [found(host, has_health=True)], 10)
        stored = diagnoses.load_diagnoses(tx, [host])
        assert current(stored, host, 5) is stored[host]
        assert current(stored, host, 6) is None
    hear(store, host, 6)
    with store.transaction() as tx:
        save_findings(tx, [found(host, heard_at=6)], 20)
        stored = diagnoses.load_diagnoses(tx, [host])
    assert (stored[host].since, stored[host].health_at) == (20, 10)
    assert len(events(store)) == 2


def test_of_a_polled_host_only_another_key_is_an_event(store: Store) -> None:
    host = add(store)
    with store.transaction() as tx:
        save_findings(tx, [found(host, is_polled=True)], 10)
        save_findings(tx, [found(host, DiagnosisKind.HOST_KEY_CHANGED, is_polled=True)], 20)
    assert [kind for kind, _, _ in events(store)] == ["host-key-changed"]


def test_that_nobody_may_ask_is_no_event(store: Store) -> None:
    """A site without SSH has no use for one with each silence. That one may be asked no more is news."""
    host = add(store)
    with store.transaction() as tx:
        save_findings(tx, [found(host, DiagnosisKind.NOT_PROBED)], 10)
    assert not events(store)
    with store.transaction() as tx:
        save_findings(tx, [found(host)], 20)
        save_findings(tx, [found(host, DiagnosisKind.NOT_PROBED)], 30)
    assert sorted(events(store)) == [
        ("diagnosed", "frozen", "not probed"),
        ("diagnosed", "not probed", "frozen"),
    ]


def test_what_was_found_out_is_dropped_if_the_host_has_spoken_since(store: Store) -> None:
    host = add(store)
    hear(store, host, 6)
    with store.transaction() as tx:
        save_findings(tx, [found(host)], 10)
        assert not diagnoses.load_diagnoses(tx, [host])
    assert not events(store)


def test_findings_of_removed_hosts_are_dropped(store: Store) -> None:
    with store.transaction() as tx:
        save_findings(tx, [found(99)], 10)
        assert not diagnoses.load_diagnoses(tx, [99])
    assert not events(store)


def test_a_diagnosis_ends_when_its_host_is_heard(store: Store) -> None:
    fleet = Fleet(store)
    one, two = fleet.add("one", ago=5)[0], fleet.add("two", ago=5)[0]
    with store.transaction() as tx:
        save_findings(tx, [found(one, heard_at=fleet.now - 5), found(two, heard_at=fleet.now - 5)], 10)
    hear(store, two, fleet.now)
    with store.transaction() as tx:
        assert diagnoses.load_outdated(tx) == [two]
        diagnoses.forget_diagnoses(tx, [two])
        assert list(diagnoses.load_diagnoses(tx, [one, two])) == [one]


def test_neighbours_have_the_address_that_was_given_for_ssh(store: Store) -> None:
    fleet = Fleet(store)
    one = fleet.add("one", ago=5, address="unix")[0]
    fleet.add("two", ago=None)
    fleet.add("three", address="192.0.20.7")
    fleet.add("six", ago=None, address="2001:db8::1")
    with store.transaction() as tx:
        ssh_hosts.save_ssh_host(tx, one, SshSettings(address="192.0.2.50"), polled=False)
        save_findings(tx, [found(one, heard_at=fleet.now - 5, has_health=True)], 77)
        neighbours = diagnoses.load_neighbours(tx, ["192.0.2.9", "web-17"])
        of_six = diagnoses.load_neighbours(tx, ["2001:DB8:0::7"])
    assert sorted(neighbours) == [
        ("192.0.2.50", 15_000, fleet.now - 5, 77),
        ("192.0.2.7", 15_000, 0, 0),
    ]
    assert "2001:db8::1" in [one.address for one in of_six]


# Whom a poller asks.


def test_silent_agents_are_those_announced_and_those_never_heard_for_a_while(store: Store) -> None:
    fleet = Fleet(store)
    fleet.add("fresh")
    fleet.add("silent", ago=5 * MINUTE, silence=Silence.ALONE)
    fleet.add("fleet", ago=9 * MINUTE, silence=Silence.FLEET)
    fleet.add("never", ago=None)
    polled = fleet.add("polled", ago=5 * MINUTE, silence=Silence.ALONE, agent_version=POLLED)[0]
    with store.transaction() as tx:
        ssh_hosts.save_ssh_host(tx, polled, SshSettings(), polled=True)
        listening = Listening(fleet.now, fleet.now - 60 * MINUTE)
        found = ssh_hosts.load_silent_agents(tx, listening, fleet.now)
        recent = ssh_hosts.load_silent_agents(tx, listening, 0)
        assert [one.name for one in ssh_hosts.load_polled(tx)] == ["polled"]
    assert [one.ssh.name for one in found] == ["silent", "fleet", "never"], "news first"
    assert [one.ssh.name for one in recent] == ["silent", "fleet"]


def test_a_host_is_polled_until_an_agent_speaks_for_it(store: Store) -> None:
    fleet = Fleet(store)
    for name, version in (("new", ""), ("polled", POLLED), ("agent", "0.1.0")):
        host = fleet.add(name, agent_version=version)[0]
        with store.transaction() as tx:
            ssh_hosts.save_ssh_host(tx, host, SshSettings(), polled=True)
    with store.transaction(write=False) as tx:
        assert [one.name for one in ssh_hosts.load_polled(tx)] == ["new", "polled"]


def test_stored_settings_that_make_no_sense_are_told_with_their_host(store: Store) -> None:
    host = add(store)
    with store.transaction() as tx:
        ssh_hosts.save_ssh_host(tx, host, SshSettings(), polled=True)
        tx.execute("UPDATE ssh_host SET settings = %s", ('{"port": 70000}',))
        [one] = ssh_hosts.load_ssh_hosts(tx)
    assert "70000" in one.problem


def test_every_change_is_seen_by_its_version(store: Store) -> None:
    versions = set()
    for _ in range(3):
        with store.transaction() as tx:
            ssh_hosts.note_change(tx)
            versions.add(ssh_hosts.load_version(tx))
    assert len(versions) == 3


def test_nan_is_no_verdict() -> None:
    after, _ = take(known_status(memory=State.CRITICAL), heard(math.nan, 0.1, 0.1))
    assert after.checks[CheckKey("memory")].state is State.CRITICAL
