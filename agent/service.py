"""The agent at work: measure, spool, deliver, until told to stop.

The event loop delivers; a thread measures and appends to the spool, so that a slow disk or a hanging
check never holds up a stream. Stop order, on SIGTERM or SIGINT:

1. no further round of measurement is begun; one in progress gets a second to reach the spool;
2. the stream ends; what is not acked waits in the spool;
3. the spool forgets what is acked and closes;
4. the state directory is free for the next agent, and the process exits with 0.

A check that hangs is left behind in its daemon thread, so none of this waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import time

from agent.config import AgentConfig
from agent.delivery import Delivery
from agent.facts import collect_facts
from agent.identity import Identity, load_identity
from agent.measure import Measurer
from agent.memory_spool import MemorySpool
from agent.periodic import Periodic
from agent.schedule import Schedule
from agent.spool import DiskSpool, Limits
from agent.spool_file import SpoolError
from agent.state_dir import claimed
from agent.stream import Timeouts
from fleetpulse import __version__
from fleetpulse.model import Hello

log = logging.getLogger(__name__)

FACTS_INTERVAL = 600.0  # seconds
_ROUND_GRACE = 1.0  # seconds that a round in progress gets at the stop


def run(config: AgentConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises StateDirError or IdentityError if it cannot start."""
    with claimed(config.state_dir):
        identity = load_identity(config.state_dir, config.hostname)
        spool = _open_spool(config)
        try:
            asyncio.run(_serve(config, identity, spool))
        finally:
            spool.close()
    log.info("stopped")


def _open_spool(config: AgentConfig) -> DiskSpool | MemorySpool:
    limits = Limits(config.spool.max_age.milliseconds, config.spool.max_size)
    try:
        return DiskSpool(config.state_dir / "spool.db", limits)
    except SpoolError as error:
        # A full or failing disk is what the admins want to hear about, so start all the same.
        log.error("%s; reports are kept in memory and do not survive a restart", error)  # noqa: TRY400
        return MemorySpool(limits)


async def _serve(config: AgentConfig, identity: Identity, spool: DiskSpool | MemorySpool) -> None:
    delivery = Delivery(config.collector, spool, _hello(config, identity), Timeouts(ack=config.ack_deadline))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP ignored: new settings take a restart")
    measurer = Measurer(config.checks, spool.last_layout)

    def measure() -> None:
        measured = measurer.measure(time.monotonic(), time.time_ns() // 1_000_000)
        spool.append(measured.measured_at, measured.layout, measured.values, measured.results)
        # Stopping closes the loop under a round that hangs.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(delivery.wake)

    def tell_facts() -> None:
        facts = collect_facts()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(delivery.set_facts, facts)

    now = time.monotonic()
    schedule = Schedule.starting(now, config.interval, random.random(), random.random())  # noqa: S311
    rounds = Periodic(
        "measuring",
        measure,
        schedule.first,
        lambda now: schedule.next_due(now, random.random()),  # noqa: S311
    )
    inventory = Periodic("collecting facts", tell_facts, now, lambda now: now + FACTS_INTERVAL)
    log.info(
        "agent %s of %s (%s) reports to %s every %g s, %d reports wait in the spool",
        __version__,
        identity.hostname,
        identity.host_id,
        config.collector,
        config.interval,
        spool.pending(),
    )
    delivering = asyncio.create_task(delivery.run())
    rounds.start()
    inventory.start()
    try:
        await _until_stopped(stop, delivering)
    finally:
        log.info("stopping")
        rounds.stop()
        inventory.stop()
        if not await asyncio.to_thread(rounds.join, _ROUND_GRACE):
            log.warning("the round in progress hangs and is left behind")
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)


async def _until_stopped(stop: asyncio.Event, delivering: asyncio.Task[None]) -> None:
    """Raises whatever ended the delivery, which nothing should."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((stopping, delivering), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if delivering.done():
        await delivering


def _hello(config: AgentConfig, identity: Identity) -> Hello:
    return Hello(
        host_id=identity.host_id,
        hostname=identity.hostname,
        machine_id=identity.machine_id,
        boot_id=identity.boot_id,
        epoch=1,  # each stream names the spool's
        agent_version=__version__,
        interval=config.interval.milliseconds,
        ttl=config.time_to_live.milliseconds,
        groups=tuple(config.groups),
    )
