"""Real agents, really killed and really cut off: every report arrives, and takes effect once.

Where it has to be counted exactly, a collector that notes every report stands in for the real one; it
refuses nothing and would fail on a report that it took twice.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from agent.backoff import Backoff
from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
from agent.stream import Stream, Timeouts
from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Hello, HostId, Layout, Measurement, State
from tests.agent.scripted_collector import Script, serving
from tests.ports import free_ports
from tests.processes import Program, Site, wait_until
from tests.relay import Relay

LAYOUT = Layout((CheckLayout(CheckKey("plugin"), (Measurement("m", "1"),)),))
QUIET = {"added", "fact", "state"}  # what a host may be told about when nothing is lost


class Spooled(NamedTuple):
    """What an agent's spool holds; `last_seq` is of the newest report that it ever kept."""

    epoch: int
    last_seq: int


def spool_of(site: Site, agent: str = "agent") -> Spooled:
    """Read beside the agent, or after its end."""
    with sqlite3.connect(f"file:{site.folder / agent / 'spool.db'}?mode=ro", uri=True) as spool:
        row = spool.execute("SELECT epoch, coalesce(max(seq), 0) FROM meta, report").fetchone()
    spool.close()
    return Spooled(*row)


def mark_of(site: Site, agent: str = "agent") -> tuple[int, int]:
    """(epoch, seq) that the collector's database has; zeros for a host that it does not know."""
    with sqlite3.connect(site.folder / "fleet.db", timeout=10) as database:
        row = database.execute(
            "SELECT s.epoch, s.seq FROM host h JOIN host_seen s ON s.host = h.id WHERE h.hostname = ?",
            (agent,),
        ).fetchone()
    database.close()
    return row or (0, 0)


def has_everything(site: Site, agent: str = "agent") -> bool:
    """Whether the collector has committed all that the agent has made so far."""
    spooled = spool_of(site, agent)
    epoch, seq = mark_of(site, agent)
    return epoch == spooled.epoch and seq >= spooled.last_seq


def events_of(site: Site) -> list[str]:
    return [event["kind"] for event in site.json("events", "--limit", "10000")["events"]]


@contextmanager
def scripted(script: Script, port: int = 0) -> Iterator[int]:
    """A collector that does what it is told, in a thread of its own; yields the port.

    One on which another can be started later.
    """
    port = port or free_ports()[0]
    loop = asyncio.new_event_loop()
    started: list[int] = []
    over = asyncio.Event()

    async def serve() -> None:
        async with serving(script, port) as bound:
            started.append(bound)
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield wait_until(lambda: started, what="the scripted collector")[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)
        loop.close()


def expect_each_once(script: Script, spooled: Spooled) -> None:
    """The script itself fails on a report that it takes twice."""
    assert script.seqs() == list(range(1, spooled.last_seq + 1))
    assert {epoch for epoch, _ in script.reports} == {spooled.epoch}
    assert sum(report.dropped for report in script.reports.values()) == 0


def test_a_half_open_stream_is_left_for_a_new_one_and_nothing_is_lost_or_twice(sqlite_site: Site):
    site = sqlite_site
    site.collector()
    with Relay(site.address) as relay:
        agent = site.agent(collector=relay.address, ack_timeout="1s")
        wait_until(lambda: mark_of(site)[1] >= 3, what="reports")
        relay.abandon()
        agent.wait_for_log("no ack within 1 s")
        agent.wait_for_log("again")
        before = spool_of(site).last_seq
        wait_until(lambda: mark_of(site)[1] > before, what="fresh reports on a new stream")
        assert agent.stop() == 0
        # What was made in the last moments may wait for the next start.
        site.agent(collector=relay.address, interval="60s")
        wait_until(lambda: mark_of(site) == spool_of(site), what="the rest")
    assert set(events_of(site)) <= QUIET


def test_over_a_cut_network_every_report_arrives_once(sqlite_site: Site):
    site, script = sqlite_site, Script()
    with scripted(script) as port, Relay(f"127.0.0.1:{port}") as relay:
        agent = site.agent(collector=relay.address, interval="100ms", ack_timeout="1s")
        for _ in range(2):
            goal = len(script.reports) + 5
            wait_until(lambda goal=goal: len(script.reports) >= goal, what="reports")
            relay.cut()
            cut_at = spool_of(site).last_seq
            wait_until(lambda cut_at=cut_at: spool_of(site).last_seq > cut_at + 15, what="a backlog")
            relay.heal()  # what was held back arrives late, beside the same again on a new stream
        goal = spool_of(site).last_seq
        wait_until(lambda: len(script.reports) >= goal, what="the backlog")
        assert agent.stop() == 0
        # What was made in the last moments may wait for the next start.
        site.agent(collector=relay.address, interval="60s")
        wait_until(lambda: len(script.reports) == spool_of(site).last_seq, what="the rest")
    expect_each_once(script, spool_of(site))


def test_an_agent_killed_in_mid_stream_and_with_a_backlog_delivers_every_report_once(sqlite_site: Site):
    site, script = sqlite_site, Script(max_batch_reports=7)
    settings = {"interval": "100ms"}
    with ExitStack() as stack:
        port = stack.enter_context(scripted(script))
        settings["collector"] = f"127.0.0.1:{port}"
        for _ in range(3):
            agent = site.agent(**settings)
            goal = len(script.reports) + 4
            wait_until(lambda goal=goal: len(script.reports) >= goal, what="reports")
            agent.kill()
    for _ in range(2):  # nobody to deliver to
        agent = site.agent(**settings)
        goal = spool_of(site).last_seq + 10
        wait_until(lambda goal=goal: spool_of(site).last_seq >= goal, what="a backlog")
        agent.kill()
    with scripted(script, port):
        site.agent(**settings | {"interval": "60s"})
        wait_until(lambda: len(script.reports) == spool_of(site).last_seq, what="the backlog")
    assert spool_of(site).last_seq > 30
    expect_each_once(script, spool_of(site))
    assert len({hello.boot_id for hello in script.hellos}) == 1


def test_an_agent_that_lost_its_spool_begins_a_new_epoch_from_what_is_known(sqlite_site: Site):
    site = sqlite_site
    site.collector()
    agent = site.agent()
    wait_until(lambda: mark_of(site)[1] >= 3, what="reports")
    assert agent.stop() == 0
    before = mark_of(site)
    told = events_of(site)
    for file in (site.folder / "agent").glob("spool.db*"):
        file.unlink()
    site.agent()
    wait_until(lambda: mark_of(site)[0] != before[0] and mark_of(site)[1] >= 2, what="a new epoch")
    new = events_of(site)[len(told) :]
    assert new.count("new-epoch") == 1
    assert set(new) <= {"new-epoch", "fact", "state"}, "a baseline, not a storm"


def test_a_spool_restored_from_a_backup_loses_nothing_new_and_repeats_nothing_old(sqlite_site: Site):
    site, script = sqlite_site, Script()
    backup = site.folder / "backup"
    with scripted(script) as port:
        settings = {"collector": f"127.0.0.1:{port}", "interval": "100ms"}
        agent = site.agent(**settings)
        wait_until(lambda: len(script.reports) >= 5, what="reports")
        assert agent.stop() == 0
        shutil.copytree(site.folder / "agent", backup)
        old = spool_of(site)
        agent = site.agent(**settings)
        wait_until(lambda: len(script.reports) >= old.last_seq + 10, what="reports that the backup lacks")
        agent.kill()
    lost = len(script.reports)
    shutil.rmtree(site.folder / "agent")
    backup.rename(site.folder / "agent")
    agent = site.agent(**settings)  # numbers on from the backup's while nobody listens
    goal = lost + 10
    wait_until(lambda: spool_of(site).last_seq > goal, what="the numbers to pass the collector's")
    with scripted(script, port):
        wait_until(lambda: len({epoch for epoch, _ in script.reports}) == 2, what="a new epoch")
        agent.stop()
    new = [seq for epoch, seq in script.reports if epoch != old.epoch]
    assert new[0] == old.last_seq + 1
    assert new == list(range(new[0], new[-1] + 1))
    assert new[-1] > goal


def test_a_collector_killed_between_commit_and_ack_takes_the_report_once(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch
):
    site = sqlite_site
    collector = site.collector()
    spool = MemorySpool()
    for number, state in enumerate((State.OK, State.CRITICAL, State.OK)):
        spool.append(time.time_ns() // 1_000_000, LAYOUT, (float(number),), (CheckResult(0, state, ""),))

    def deaf(stream: Stream, said: convert.Response | None) -> bool:
        return True if isinstance(said, convert.Ack) else hear(stream, said)

    hear = Stream._take

    async def deliver(done: asyncio.Event) -> None:
        hello = Hello(HostId("6a7e1b0c-6f0d-4f6d-8f2b-0d6d5a9b1c11"), "agent", "m", "b", 1, "0", 1000, 60_000)
        delivery = Delivery(
            site.address, spool, hello, Timeouts(10, 60), backoff=Backoff(0.1, 0.5), on_acked=acked.append
        )
        task = asyncio.create_task(delivery.run())
        await done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    acked: list[int] = []
    loop = asyncio.new_event_loop()
    done = asyncio.Event()
    monkeypatch.setattr(Stream, "_take", deaf)
    thread = threading.Thread(target=loop.run_until_complete, args=(deliver(done),), daemon=True)
    thread.start()
    try:
        wait_until(lambda: mark_of(site)[1] == 3, what="the commit")
        collector.kill()
        assert not acked
        monkeypatch.setattr(Stream, "_take", hear)
        site.collector(upgrade=False)
        wait_until(lambda: acked, what="the Welcome that stands for the Ack")
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        loop.close()
    assert acked == [3]
    assert spool.pending() == 0
    assert mark_of(site) == (spool.epoch, 3)
    states = [event["new"] for event in site.json("events")["events"] if event["kind"] == "state"]
    assert states == ["CRITICAL", "OK"]


def test_an_idle_half_open_connection_is_noticed_without_a_report(sqlite_site: Site):
    """By the keepalive alone: a ping after 11 s, and 5 s for its answer."""
    script = Script()
    with scripted(script) as port, Relay(f"127.0.0.1:{port}") as relay:
        agent = sqlite_site.agent(collector=relay.address, interval="10s", ack_timeout="10m")
        wait_until(lambda: script.reports, what="the first report")
        relay.abandon()
        wait_until(lambda: len(script.hellos) == 2, what="a new stream")
        assert "no ack" not in agent.log


@pytest.mark.timeout(400)
def test_a_backlog_of_tens_of_thousands_keeps_nobody_waiting(sqlite_site: Site):
    site = sqlite_site
    site.collector(limits_reports_per_second="1000000")
    backlog, others = 20_000, 15
    asyncio.run(asyncio.wait_for(_drain_beside_others(site, backlog, others), 300))


async def _drain_beside_others(site: Site, backlog: int, others: int) -> None:
    loop = asyncio.get_running_loop()
    spools = [MemorySpool() for _ in range(others + 1)]
    sent_at: list[dict[int, float]] = [{} for _ in spools]
    waits: list[float] = []
    deliveries = []

    def note(number: int, seq: int) -> None:
        covered = [earlier for earlier in sent_at[number] if earlier <= seq]
        waits.extend(loop.time() - sent_at[number].pop(earlier) for earlier in covered)

    for number, spool in enumerate(spools):
        hello = Hello(
            HostId(f"6a7e1b0c-6f0d-4f6d-8f2b-0d6d5a9b1c{number:02}"),
            f"h{number}",
            "m",
            "b",
            1,
            "0",
            500,
            60_000,
        )
        told = (lambda seq, number=number: note(number, seq)) if number else None
        deliveries.append(Delivery(site.address, spool, hello, Timeouts(20, 20), on_acked=told))
    for value in range(backlog):
        spools[0].append(time.time_ns() // 1_000_000, LAYOUT, (float(value),), ())
    tasks = [asyncio.create_task(delivery.run()) for delivery in deliveries]
    rounds, began = 0, loop.time()
    while spools[0].pending() or rounds < 4:
        rounds += 1
        for number in range(1, others + 1):
            seq = spools[number].append(time.time_ns() // 1_000_000, LAYOUT, (1.0,), ())
            sent_at[number][seq] = loop.time()
            deliveries[number].wake()
        await asyncio.sleep(0.5)  # the interval of the others
    seconds = loop.time() - began  # for which all would wait if they had to
    while any(spool.pending() for spool in spools):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert deliveries[0].acked_seq == backlog
    assert len(waits) == rounds * others
    assert sorted(waits)[len(waits) * 9 // 10] < max(2, seconds / 10)
    assert max(waits) < max(10, seconds / 3)


def test_agents_that_were_told_goodbye_come_back_spread_out(sqlite_site: Site):
    site = sqlite_site
    collector = site.collector()
    agents = [site.agent(f"agent{number}") for number in range(4)]
    for number in range(4):
        wait_until(lambda number=number: mark_of(site, f"agent{number}")[1], what="its reports")
    assert collector.stop() == 0
    waits = [seconds_to_the_next_stream(agent) for agent in agents]
    assert len(set(waits)) > 1
    site.collector(upgrade=False)
    for number, agent in enumerate(agents):
        before = spool_of(site, f"agent{number}").last_seq
        wait_until(lambda n=number, b=before: mark_of(site, f"agent{n}")[1] > b, what="its return")
        wait_until(lambda n=number: has_everything(site, f"agent{n}"), what="all that it has made")
        assert agent.stop() == 0
    assert set(events_of(site)) <= QUIET


def seconds_to_the_next_stream(agent: Program) -> float:
    found = re.search(r"next one in ([\d.]+) s", agent.wait_for_log("goodbye"))
    assert found
    return float(found[1])


def test_sighup_is_ignored_with_a_word(sqlite_site: Site):
    agent = sqlite_site.agent(collector="127.0.0.1:1")
    agent.wait_for_log("next one in")
    agent.signal(signal.SIGHUP)
    agent.wait_for_log("SIGHUP ignored")
    wait_until(lambda: spool_of(sqlite_site).last_seq >= 3, what="further reports")
    assert agent.stop() == 0
