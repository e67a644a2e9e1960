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
ALIVE = Incumbent(HERE, 10_000, NOW - 4_000, open_since=NOW - 60_000)
ELSEWHERE = ALIVE._replace(open_since=0, is_elsewhere=True)


# --- the decision ---


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (HERE, HERE, True),
        (HERE, HERE._replace(instance=""), True),  # an agent that does not know of instances yet
        (HERE, HERE._replace(hardware_id=""), True),
        (HERE, HERE._replace(instance="run2"), False),
        (HERE, HERE._replace(boot_id="boot2"), False),
        (HERE, HERE._replace(address="192.0.2.9"), False),
        (HERE, HERE._replace(instance="", machine_id="machine2"), False),
    ],
)
def test_a_place_is_the_same_as_far_as_it_is_known(one: Place, other: Place, same: bool) -> None:
    assert same_place(one, other) is same
    assert same_place(other, one) is same


@pytest.mark.parametrize(
    ("newcomer", "incumbent", "verdict"),
    [
        (HERE, ALIVE, Verdict.ADMIT),
        (CLONE, ALIVE, Verdict.HOLD),
        (RESTARTED, ALIVE, Verdict.HOLD),
        (HERE._replace(address="192.0.2.9"), ALIVE, Verdict.HOLD),
        (CLONE, ELSEWHERE, Verdict.HOLD),
        (CLONE, ALIVE._replace(open_since=0), Verdict.ADMIT),  # its stream was closed
        (CLONE, ALIVE._replace(heard_at=NOW - 15_000), Verdict.ADMIT),  # one and a half intervals ago
        (CLONE, ALIVE._replace(heard_at=NOW - 14_999), Verdict.HOLD),
        (CLONE, ELSEWHERE._replace(heard_at=NOW - 15_000), Verdict.ADMIT),
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


def test_who_waited_gets_in_when_the_other_stays_silent_and_not_when_it_speaks() -> None:
    contest = judge(CLONE, ALIVE, NOW).contest
    later = NOW + 11_000
    assert judge(CLONE, ALIVE, later, contest).verdict is Verdict.ADMIT
    assert judge(CLONE, ALIVE._replace(heard_at=NOW + 6_000), later, contest).verdict is Verdict.CONFLICT
    assert judge(CLONE, ALIVE._replace(open_since=0), NOW + 1, contest).verdict is Verdict.ADMIT


def test_a_stream_that_outlasts_a_keepalive_is_one_that_lives() -> None:
    """With an interval of an hour nobody waits for a report."""
    slow = ALIVE._replace(interval=3_600_000)
    judgement = judge(CLONE, slow, NOW)
    assert judgement.wait == LOOK_AGAIN
    later = NOW + LOOK_AGAIN
    assert judge(CLONE, slow, later, judgement.contest).verdict is Verdict.CONFLICT
    begun_anew = slow._replace(open_since=NOW + 1)
    assert judge(CLONE, begun_anew, later, judgement.contest).verdict is Verdict.HOLD
    # Nobody here can tell of a stream elsewhere; but one machine hardly has two agents.
    far = ELSEWHERE._replace(interval=3_600_000)
    judgement = judge(CLONE, far, later, judgement.contest)
    assert (judgement.verdict, judgement.wait) == (Verdict.HOLD, LOOK_AGAIN)
    assert judge(RESTARTED, far, later, judgement.contest).verdict is Verdict.ADMIT


@pytest.mark.parametrize(
    ("newcomer", "incumbent", "ago", "verdict"),
    [
        (CLONE, ALIVE, 1, Verdict.QUARANTINED),
        (CLONE, ALIVE._replace(open_since=0), 1, Verdict.QUARANTINED),  # whether or not the other lives now
        (CLONE, ALIVE, QUARANTINE, Verdict.HOLD),
        (CLONE, ALIVE._replace(open_since=0), QUARANTINE, Verdict.ADMIT),
        (RESTARTED, ALIVE, 1, Verdict.QUARANTINED),
        (RESTARTED, ALIVE._replace(open_since=0), 1, Verdict.ADMIT),
        (HERE, ALIVE, 1, Verdict.ADMIT),
    ],
)
def test_who_was_refused_is_refused_for_a_while(
    newcomer: Place, incumbent: Incumbent, ago: int, verdict: Verdict
) -> None:
    assert judge(newcomer, incumbent, NOW, tried_at=NOW - ago).verdict is verdict


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
    counts = json.loads(collector.wait_for_log('"stopped"'))
    assert counts["conflict"] == 3
    assert "replaced" not in counts


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
            assert waited < 1.5 * INTERVAL / 1000 + 1
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
                old = replace(one.hello, instance="", hardware_id="")
                async with machine(address, old) as oldest:
                    await welcomed(oldest)
                    assert [m.throttled for m in (one, other, oldest)] == [0, 0, 0]

    run(scenario())
    assert collector.stop() == 0
    assert "contested" not in json.loads(collector.wait_for_log('"stopped"'))


def test_who_waits_is_let_in_as_soon_as_the_other_is_gone(sqlite_site: Site) -> None:
    """Such as the last moments of a container that was moved."""
    sqlite_site.collector()
    said = hello(interval=60_000, ttl=180_000)

    async def scenario() -> None:
        async with (
            machine(sqlite_site.address, said) as leaving,
            machine(sqlite_site.address, hello(host_id=said.host_id)) as coming,
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
    sleeper = hello()
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
