"""Two machines with one identity: whoever is there stays, the other is refused, and nobody flaps."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import pytest

from collector.core.identity import (
    LOOK_AGAIN,
    QUARANTINE,
    Contest,
    Incumbent,
    Place,
    Verdict,
    judge,
    place_hash,
    same_place,
)
from collector.core.rules import RuleSet
from collector.ingest.batch import BatchWriter
from collector.ingest.items import Held, HelloRefused, Registered, Registration
from collector.store import conflicts, hosts
from collector.store.collectors import CollectorRow, heartbeat
from collector.store.store import Store, open_store
from fleetpulse.convert import Ack, Welcome
from fleetpulse.model import Hello
from tests.collector.fleet import record
from tests.collector.machine import INTERVAL, Machine, Refusal, hello, machine
from tests.processes import Site, wait_until

_Result = TypeVar("_Result")

HERE = Place("machine", "hardware", "boot", "192.0.2.1", "run")
CLONE = HERE._replace(machine_id="machine2", hardware_id="hardware2", address="192.0.2.2", instance="run2")
RESTARTED = HERE._replace(instance="run2")
NOW = 1_000_000
MOVED = HERE._replace(address="192.0.2.9")
REINSTALLED = HERE._replace(address="192.0.2.9", instance="run2")
ALIVE = Incumbent(HERE, 10_000, 30_000, NOW - 4_000, listening_since=NOW - 600_000, open_since=NOW - 60_000)
ELSEWHERE = ALIVE._replace(open_since=0, is_elsewhere=True)
CUT = ALIVE._replace(open_since=0)
HELD = 25_000  # how long after its last word another machine waits for the known one: 30_000 / 2 + 10_000


# --- the decision ---


@pytest.mark.parametrize(
    ("newcomer", "known", "same"),
    [
        (HERE, HERE, True),
        (HERE, HERE._replace(instance=""), True),  # an agent that did not know of instances yet
        (HERE, Place("machine", "", "", "", ""), True),  # enrolled, and never heard
        (HERE._replace(hardware_id=""), HERE, False),  # who says less might be anybody
        (HERE._replace(instance=""), HERE, False),
        (Place("", "", "", HERE.address, ""), HERE, False),
        (
            Place("machine", "", "boot", HERE.address, ""),
            Place("machine", "", "boot", HERE.address, ""),
            True,
        ),
        (HERE, HERE._replace(instance="run2"), False),
        (HERE, HERE._replace(boot_id="boot2"), False),
        (HERE, HERE._replace(address="192.0.2.9"), False),
        (HERE, HERE._replace(instance="", machine_id="machine2"), False),
    ],
)
def test_a_place_is_the_same_as_far_as_it_is_known(newcomer: Place, known: Place, same: bool) -> None:
    assert same_place(newcomer, known) is same


@pytest.mark.parametrize(
    ("newcomer", "incumbent", "verdict"),
    [
        (HERE, ALIVE, Verdict.ADMIT),
        (CLONE, ALIVE, Verdict.HOLD),
        (RESTARTED, ALIVE, Verdict.HOLD),
        (MOVED, ALIVE, Verdict.HOLD),
        (CLONE, ELSEWHERE, Verdict.HOLD),
        (RESTARTED, ELSEWHERE, Verdict.HOLD),
        (RESTARTED, CUT, Verdict.ADMIT),  # its stream was closed
        (MOVED, CUT, Verdict.ADMIT),
        (RESTARTED, ALIVE._replace(heard_at=NOW - 15_000), Verdict.ADMIT),  # one and a half intervals ago
        (RESTARTED, ALIVE._replace(heard_at=NOW - 14_999), Verdict.HOLD),
        (RESTARTED, ELSEWHERE._replace(heard_at=NOW - 15_000), Verdict.ADMIT),
    ],
)
def test_who_comes_from_elsewhere_waits_while_the_other_may_live(
    newcomer: Place, incumbent: Incumbent, verdict: Verdict
) -> None:
    judgement = judge(newcomer, incumbent, NOW)
    assert judgement.verdict is verdict
    if verdict is Verdict.HOLD:
        assert judgement.contest == Contest(NOW, incumbent.heard_at)
        assert judgement.wait == incumbent.heard_at + 15_000 - NOW


@pytest.mark.parametrize(
    "newcomer",
    [
        CLONE,
        HERE._replace(machine_id="machine2"),
        HERE._replace(hardware_id="hardware2"),
        REINSTALLED,
        HERE._replace(address="192.0.2.9", instance=""),
    ],
)
@pytest.mark.parametrize(
    ("incumbent", "until"),
    [
        (CUT, CUT.heard_at + HELD),
        (ALIVE, ALIVE.heard_at + HELD),
        (ELSEWHERE, ELSEWHERE.heard_at + HELD),
        (CUT._replace(heard_at=NOW - 3_600_000, listening_since=NOW - 1_000), NOW - 1_000 + HELD),
        (CUT._replace(ttl=12_000), CUT.heard_at + 12_000),
    ],
)
def test_another_machine_waits_until_the_known_one_should_have_come_back(
    newcomer: Place, incumbent: Incumbent, until: int
) -> None:
    """Whoever is quicker after a restart of the collector, or a cut of the network, must not have won."""
    now, contest = NOW, None
    while now < until:
        judgement = judge(newcomer, incumbent, now, contest)
        assert judgement.verdict is Verdict.HOLD, now
        back = incumbent._replace(heard_at=now)
        assert contest is None or judge(newcomer, back, now + 1, contest).verdict is Verdict.CONFLICT
        assert 0 < judgement.wait <= 15_000, "one that lives is noticed when its report is due"
        now, contest = now + judgement.wait, judgement.contest
    assert now == until
    assert judge(newcomer, incumbent, now, contest).verdict is Verdict.ADMIT
    assert until < incumbent.silent_since + incumbent.ttl + 1, "before anybody calls it silent"


def test_nobody_waits_for_a_machine_that_was_never_heard() -> None:
    never = Incumbent(HERE, 10_000, 30_000, 0, listening_since=NOW - 1_000)
    assert judge(CLONE, never, NOW).verdict is Verdict.ADMIT


def test_who_waited_gets_in_when_the_other_stays_silent_and_not_when_it_speaks() -> None:
    contest = judge(RESTARTED, ALIVE, NOW).contest
    later = NOW + 11_000
    assert judge(RESTARTED, ALIVE, later, contest).verdict is Verdict.ADMIT
    assert judge(RESTARTED, ALIVE._replace(heard_at=NOW + 6_000), later, contest).verdict is Verdict.CONFLICT
    assert judge(RESTARTED, CUT, NOW + 1, contest).verdict is Verdict.ADMIT


def test_a_stream_that_outlasts_a_keepalive_is_one_that_lives() -> None:
    """With an interval of an hour nobody waits for a report."""
    slow = ALIVE._replace(interval=3_600_000, ttl=10_800_000)
    judgement = judge(CLONE, slow, NOW)
    assert judgement.wait == LOOK_AGAIN
    later = NOW + LOOK_AGAIN
    assert judge(CLONE, slow, later, judgement.contest).verdict is Verdict.CONFLICT
    begun_anew = slow._replace(open_since=NOW + 1)
    assert judge(CLONE, begun_anew, later, judgement.contest).verdict is Verdict.HOLD
    # Nobody here can tell of a stream elsewhere; but one machine hardly has two agents.
    far = ELSEWHERE._replace(interval=3_600_000, ttl=10_800_000)
    judgement = judge(CLONE, far, later, judgement.contest)
    assert (judgement.verdict, judgement.wait) == (Verdict.HOLD, LOOK_AGAIN)
    assert judge(RESTARTED, far, later, judgement.contest).verdict is Verdict.ADMIT


@pytest.mark.parametrize(
    ("newcomer", "incumbent", "ago", "verdict"),
    [
        (CLONE, ALIVE, 1, Verdict.QUARANTINED),
        (CLONE, CUT, 1, Verdict.QUARANTINED),
        (
            CLONE,
            CUT._replace(heard_at=NOW - HELD),
            1,
            Verdict.QUARANTINED,
        ),  # whether or not the other lives now
        (CLONE, ALIVE, QUARANTINE, Verdict.HOLD),
        (CLONE, CUT._replace(heard_at=NOW - HELD), QUARANTINE, Verdict.ADMIT),
        (RESTARTED, ALIVE, 1, Verdict.QUARANTINED),
        (RESTARTED, CUT, 1, Verdict.ADMIT),
        (MOVED, CUT, 1, Verdict.ADMIT),
        (REINSTALLED, CUT, 1, Verdict.QUARANTINED),
        (REINSTALLED, CUT._replace(heard_at=NOW - HELD), 1, Verdict.ADMIT),
        (HERE, ALIVE, 1, Verdict.ADMIT),
    ],
)
def test_who_was_refused_is_refused_for_a_while(
    newcomer: Place, incumbent: Incumbent, ago: int, verdict: Verdict
) -> None:
    assert judge(newcomer, incumbent, NOW, tried_at=NOW - ago).verdict is verdict


@pytest.mark.parametrize("ttl", [30_000, 86_400_000])
def test_who_goes_on_trying_is_let_in_when_the_other_has_been_switched_off(ttl: int) -> None:
    """Its own tries do not keep it out for ever, and a while in which nobody listened does not count."""
    off = CUT._replace(ttl=ttl, heard_at=NOW, listening_since=NOW + 60_000)
    released = NOW + 60_000 + max(QUARANTINE, ttl)
    for now in range(NOW + 60_000, released, 60_000):
        assert judge(CLONE, off, now, tried_at=now - 60_000).verdict is Verdict.QUARANTINED
    assert judge(CLONE, off, released - 1, tried_at=released - 60_000).verdict is Verdict.QUARANTINED
    assert judge(CLONE, off, released, tried_at=released - 60_000).verdict is Verdict.ADMIT


def test_a_machine_in_conflict_is_known_again_after_a_restart() -> None:
    again = CLONE._replace(instance="run3", boot_id="boot3")
    assert place_hash(CLONE, HERE) == place_hash(again, HERE)
    assert place_hash(CLONE, HERE) != place_hash(CLONE._replace(address="192.0.2.3"), HERE)
    # Two agents on one machine differ in nothing else.
    assert place_hash(RESTARTED, HERE) != place_hash(HERE._replace(instance="run3"), HERE)


# --- one transaction ---


def registration(said: Any, **more: Any) -> Registration:
    loop = asyncio.new_event_loop()
    loop.close()
    return Registration(said, 7, NOW, loop.create_future(), **more)


def age(store: Store, host_id: str, received_at: int) -> int:
    """Let a host have reported last at that moment; its number."""
    with store.transaction() as tx:
        host = hosts.find_hosts(tx, [host_id])[host_id].host
        tx.execute("UPDATE host_seen SET received_at = %s WHERE host = %s", (received_at, host))
    return host


def clone_of(said: Any, **changes: Any) -> Any:
    return replace(said, machine_id="machine2", hardware_id="hardware2", instance="run2", **changes)


def test_two_hellos_of_one_host_in_one_batch_meet(store: Store) -> None:
    """After an outage both may wait for the database; the first stays."""
    batches = BatchWriter(store, lambda: RuleSet(()), lambda: NOW)
    said = record(collector="c1", instance="run", hardware_id="hardware")
    first, second, again = batches.apply(
        [registration(said), registration(clone_of(said)), registration(said)]
    )
    assert isinstance(first, Registered)
    assert isinstance(second, Held)
    assert isinstance(again, Registered)
    with store.transaction() as tx:
        assert hosts.find_hosts(tx, [said.host_id])[said.host_id].record == said


def listen(store: Store, since: int, now: int) -> None:
    with store.transaction() as tx:
        heartbeat(tx, CollectorRow("c1", "", "", 1, since, now, None))


def test_a_clone_that_is_quicker_after_a_restart_of_the_collector_waits(store: Store) -> None:
    """Nobody has a stream yet. The original may come back until it should have."""
    said = record(collector="c1", instance="run", hardware_id="hardware")
    clone, restarted = clone_of(said), replace(said, instance="run2", boot_id="boot2")
    BatchWriter(store, lambda: RuleSet(()), lambda: NOW).apply([registration(said)])
    age(store, said.host_id, NOW - 900_000)
    listen(store, NOW - 2_000, NOW)
    [answer] = BatchWriter(store, lambda: RuleSet(()), lambda: NOW).apply([registration(clone)])
    assert isinstance(answer, Held)
    assert NOW + answer.wait < NOW - 2_000 + 45_000
    for one in (said, restarted):  # the machine itself, and its next run
        [admitted] = BatchWriter(store, lambda: RuleSet(()), lambda: NOW).apply([registration(one)])
        assert isinstance(admitted, Registered)
    [refused] = BatchWriter(store, lambda: RuleSet(()), lambda: NOW + 1).apply(
        [registration(clone, open_since=NOW + 1, contest=answer.contest)]
    )
    assert isinstance(refused, HelloRefused)


def test_a_machine_that_was_refused_is_let_in_when_the_other_is_off(store: Store) -> None:
    """The one that was refused is told so."""
    said = record(collector="c1", instance="run", hardware_id="hardware")
    clone = clone_of(said)
    BatchWriter(store, lambda: RuleSet(()), lambda: NOW).apply([registration(said)])
    listen(store, 1, NOW)
    contest = Contest(NOW - 9, NOW - 9)
    age(store, said.host_id, NOW)
    [refused] = BatchWriter(store, lambda: RuleSet(()), lambda: NOW).apply(
        [registration(clone, contest=contest)]
    )
    assert isinstance(refused, HelloRefused)
    assert "switch the other off: 10m 0s after it was heard last, this one is let in" in str(refused)
    for later in (300_000, QUARANTINE - 1):
        listen(store, 1, NOW + later)
        [answer] = BatchWriter(store, lambda: RuleSet(()), lambda: NOW + later).apply([registration(clone)])  # noqa: B023 - called at once
        assert isinstance(answer, HelloRefused)
    listen(store, 1, NOW + QUARANTINE)
    [admitted] = BatchWriter(store, lambda: RuleSet(()), lambda: NOW + QUARANTINE).apply(
        [registration(clone)]
    )
    assert isinstance(admitted, Registered)


def test_a_thousand_clones_do_not_fill_the_table(store: Store) -> None:
    batches = BatchWriter(store, lambda: RuleSet(()), lambda: NOW)
    said = record(collector="c1", instance="run", hardware_id="hardware")
    [known] = batches.apply([registration(said)])
    assert isinstance(known, Registered)
    clones = [clone_of(said, address=f"10.0.0.{number}") for number in range(60)]
    answers = batches.apply(
        [registration(clone, open_since=NOW - 1, contest=Contest(NOW - 9, NOW - 9)) for clone in clones]
    )
    assert all(isinstance(answer, HelloRefused) and answer.kind == "conflict" for answer in answers)
    with store.transaction() as tx:
        assert len(conflicts.load_conflicts(tx, [known.host])[known.host]) == 50
        assert tx.query("SELECT COUNT(*) FROM event WHERE kind = 'conflict'") == [(50,)]


# --- real collectors ---


def run(scenario: Coroutine[Any, Any, _Result]) -> _Result:
    async def bounded() -> _Result:
        async with asyncio.timeout(60):
            return await scenario

    return asyncio.run(bounded())


def stored(site: Site, host_id: str) -> hosts.StoredHost:
    store = open_store(site.database_url, pool_size=1)
    try:
        with store.transaction(write=False) as tx:
            return hosts.find_hosts(tx, [host_id])[host_id]
    finally:
        store.close()


def events(site: Site, kind: str) -> list[Any]:
    found: list[Any] = site.json("events", "--kind", kind)["events"]
    return found


async def welcomed(one: Machine) -> float:
    """Seconds until it is."""
    began = time.monotonic()
    answer = await one.greet()
    assert isinstance(answer, Welcome), answer
    return time.monotonic() - began


def test_a_clone_is_refused_while_the_original_reports_and_after(site: Site) -> None:
    collector = site.collector()
    original = hello()
    clone = hello(host_id=original.host_id, hostname="web-2")

    async def scenario() -> None:
        async with machine(site.address, original) as first:
            await welcomed(first)
            reporting = asyncio.create_task(first.keep_reporting())
            async with machine(site.address, clone) as second:
                refused = await second.greet()
                assert second.throttled == 1, "it was asked to wait until that was clear"
            assert isinstance(refused, Refusal)
            assert refused.code is grpc.StatusCode.ALREADY_EXISTS
            assert "127.0.0.1" in refused.text
            assert original.hardware_id[:16] in refused.text
            again = replace(clone, instance="again", boot_id="again")
            async with machine(site.address, again) as second:
                assert isinstance(await second.greet(), Refusal)
                assert second.throttled == 0, "it is known by now"
            assert not reporting.done(), "nobody else has noticed"
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
        async with machine(site.address, again) as second:
            answer = await second.greet()
            assert isinstance(answer, Refusal), "not even now that the original is gone"
            assert answer.code is grpc.StatusCode.ALREADY_EXISTS
        async with machine(site.address, replace(original, instance="again")) as first:
            await welcomed(first)
            assert first.throttled == 0

    run(scenario())
    known = stored(site, original.host_id)
    assert (known.record.machine_id, known.name) == (original.machine_id, "web-1")
    [event] = events(site, "conflict")
    assert original.hardware_id[:16] in event["old"]
    assert clone.hardware_id[:16] in event["new"]
    assert collector.stop() == 0
    refused = [json.loads(line) for line in collector.log.splitlines() if '"kind": "conflict"' in line]
    assert {line["host"] for line in refused} == {"web-1"}, "what the host is called here"
    counts = json.loads(collector.wait_for_log('"stopped"'))
    assert counts["conflict"] == 3
    assert "replaced" not in counts


def test_a_cut_of_the_network_gives_the_record_to_nobody_else(sqlite_site: Site) -> None:
    """The original's stream is gone and the clone is there first; the original is let in at once."""
    sqlite_site.collector()
    original = hello()
    clone = hello(host_id=original.host_id)

    async def scenario() -> None:
        async with machine(sqlite_site.address, original) as first:
            await welcomed(first)
            await first.report()
        async with machine(sqlite_site.address, clone) as second:
            answer = asyncio.create_task(second.greet())
            while not second.throttled:  # noqa: ASYNC110 - it is asked to wait
                await asyncio.sleep(0.01)
            async with machine(sqlite_site.address, original) as first:
                await welcomed(first)
                assert first.throttled == 0
                assert isinstance(await first.report(), Ack)
                refused = await answer
            assert isinstance(refused, Refusal)
            assert refused.code is grpc.StatusCode.ALREADY_EXISTS

    run(scenario())


def test_after_a_power_loss_the_host_is_back_within_one_and_a_half_intervals(site: Site) -> None:
    """Its old stream is still open here, on a connection that nobody uses any more."""
    site.collector()
    before = hello()
    after = replace(before, boot_id="next", instance="next")

    async def scenario() -> None:
        async with machine(site.address, before) as dead, machine(site.address, after) as alive:
            await welcomed(dead)
            assert isinstance(await dead.report(), Ack)
            waited = await welcomed(alive)
            assert alive.throttled == 1
            assert waited < 2.9 * INTERVAL / 1000, "and not ten, its time to live"
            assert isinstance(await alive.report(), Ack)
            assert (await dead.expect(Ack)) == Refusal(
                grpc.StatusCode.ABORTED, "replaced by a newer stream of the same host"
            )

    run(scenario())
    assert not events(site, "conflict")
    assert stored(site, before.host_id).record.boot_id == "next"


def test_a_restart_a_reconnect_and_an_old_agent_are_let_in_at_once(sqlite_site: Site) -> None:
    collector = sqlite_site.collector()
    address = sqlite_site.address
    said = hello(interval=60_000, ttl=180_000)

    async def scenario() -> None:
        async with machine(address, said) as one:
            await welcomed(one)
            await one.report()
        async with machine(address, replace(said, instance="restarted", boot_id="rebooted")) as one:
            await welcomed(one)
            await one.report()
            async with machine(address, one.hello) as other:  # it has noticed before us that its stream broke
                await welcomed(other)
                assert [m.throttled for m in (one, other)] == [0, 0]
        older = replace(said, instance="", hardware_id="")  # went back to an older version
        async with machine(address, older) as oldest:
            await welcomed(oldest)
            await oldest.report()
            async with machine(address, older) as again:
                await welcomed(again)
                assert [m.throttled for m in (oldest, again)] == [0, 0]

    run(scenario())
    assert collector.stop() == 0
    assert "contested" not in json.loads(collector.wait_for_log('"stopped"'))


def test_who_waits_is_let_in_as_soon_as_the_other_is_gone(sqlite_site: Site) -> None:
    """Such as an agent that is restarted while its last stream is still being closed."""
    sqlite_site.collector()
    said = hello(interval=60_000, ttl=180_000)

    async def scenario() -> None:
        async with (
            machine(sqlite_site.address, said) as leaving,
            machine(sqlite_site.address, replace(said, instance="restarted")) as coming,
        ):
            await welcomed(leaving)
            await leaving.report()
            waiting = asyncio.create_task(welcomed(coming))
            while not coming.throttled:  # noqa: ASYNC110 - it is asked to wait
                await asyncio.sleep(0.01)
            leaving.leave()
            assert await waiting < 20

    run(scenario())


def test_many_clones_at_once_leave_room_for_the_original(sqlite_site: Site) -> None:
    """All of them are refused, some before it is known whether the original lives."""
    collector = sqlite_site.collector(limits_hellos_per_minute="1000")
    original = hello()

    async def boot(said: Hello) -> Refusal | Welcome:
        async with machine(sqlite_site.address, said) as clone:
            return await clone.greet()

    async def scenario() -> None:
        async with machine(sqlite_site.address, original) as first:
            await welcomed(first)
            reporting = asyncio.create_task(first.keep_reporting())
            answers = await asyncio.gather(*(boot(hello(host_id=original.host_id)) for _ in range(12)))
            codes = Counter(answer.code.name for answer in answers if isinstance(answer, Refusal))
            assert codes == {"ALREADY_EXISTS": 4, "UNAVAILABLE": 8}
            assert not reporting.done()
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    run(scenario())
    assert collector.stop() == 0


def two_collectors(site: Site) -> tuple[str, str]:
    site.collector(name="c1", writers="1", pool_size="4")
    first, site.address = site.address, "127.0.0.1:0"
    site.collector(name="c2", writers="1", pool_size="4", upgrade=False)
    second, site.address = site.address, first
    return first, second


def test_two_collectors_agree_on_who_is_who(mariadb_site: Site) -> None:
    c1, c2 = two_collectors(mariadb_site)
    original = hello()
    clone = hello(host_id=original.host_id)

    async def scenario() -> None:
        async with machine(c1, original) as first:
            await welcomed(first)
            await first.report()  # until then the other collector knows of no life
            reporting = asyncio.create_task(first.keep_reporting())
            async with machine(c2, clone) as second:
                refused = await second.greet()
                assert second.throttled
                assert isinstance(refused, Refusal)
                assert refused.code is grpc.StatusCode.ALREADY_EXISTS
            async with machine(c1, clone) as second:
                assert isinstance(await second.greet(), Refusal)
                assert second.throttled == 0, "what one has found out, the other knows"
            assert not reporting.done()
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
        async with machine(c2, original) as first:  # the same run of the same agent
            await welcomed(first)
            assert first.throttled == 0

    run(scenario())
    assert len(events(mariadb_site, "conflict")) == 1
    assert stored(mariadb_site, original.host_id).record.machine_id == original.machine_id


def test_who_was_taken_for_dead_does_not_go_on_beside_its_successor(mariadb_site: Site) -> None:
    """A machine that stood still for a while, and whose stream to the other collector is still open."""
    c1, c2 = two_collectors(mariadb_site)
    sleeper = hello(ttl=2 * INTERVAL)
    successor = hello(host_id=sleeper.host_id)

    async def scenario() -> None:
        async with machine(c1, sleeper) as first, machine(c2, successor) as second:
            await welcomed(first)
            await first.report()
            await welcomed(second)
            assert second.throttled
            reporting = asyncio.create_task(second.keep_reporting())
            awake = await first.report()
            assert isinstance(awake, Refusal)
            assert (awake.code, awake.text.endswith("say Hello again")) == (grpc.StatusCode.ABORTED, True)
            async with machine(c1, sleeper) as again:
                refused = await again.greet()
                assert isinstance(refused, Refusal)
                assert refused.code is grpc.StatusCode.ALREADY_EXISTS
            assert not reporting.done()
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    run(scenario())
    assert stored(mariadb_site, sleeper.host_id).record.machine_id == successor.machine_id


def test_a_conflict_is_over_when_nobody_has_tried_for_long(sqlite_site: Site) -> None:
    site = sqlite_site
    site.collector(silence_sweep_interval="100ms")
    said = hello()

    async def scenario() -> None:
        async with machine(site.address, said) as one:
            await welcomed(one)

    run(scenario())
    host = stored(site, said.host_id).host
    now = time.time_ns() // 1_000_000
    row = conflicts.ConflictRow(
        host, b"p" * 16, "web-2", "192.0.2.9", "m", "h", "b", "i", 1, now - QUARANTINE
    )
    store = open_store(site.database_url, pool_size=1)
    with store.transaction() as tx:
        conflicts.save_conflict(tx, row)
        conflicts.save_conflict(tx, row._replace(place=b"q" * 16, last_at=now))
    event = wait_until(lambda: events(site, "conflict-over"), what="the end of the conflict")[0]
    assert (event["hostname"], event["old"]) == ("web-1", "192.0.2.9 (hardware h, machine m)")
    with store.transaction(write=False) as tx:
        assert [row.place for row in conflicts.load_conflicts(tx)[host]] == [b"q" * 16]
    store.close()
