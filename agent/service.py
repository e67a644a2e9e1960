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
import uuid
from dataclasses import dataclass

from agent.config import AgentConfig
from agent.credential_files import CredentialFiles, Enrolment, NotEnrolledError
from agent.credentials import Credentials
from agent.delivery import Delivery
from agent.facts import collect_facts
from agent.hardware import this_hardware
from agent.identity import Identity, existing_host_id, load_identity
from agent.measure import Measurer
from agent.memory import LoadedCode, use_one_heap
from agent.memory_spool import MemorySpool
from agent.periodic import Periodic
from agent.refusal import ENROL_AGAIN
from agent.schedule import Schedule
from agent.spool import DiskSpool, Limits
from agent.spool_file import SpoolError
from agent.state_dir import claimed
from agent.stream import Timeouts
from fleetpulse import __version__, systemd
from fleetpulse.model import Hello
from fleetpulse.systemd import Notifier

log = logging.getLogger(__name__)

FACTS_INTERVAL = 600.0  # seconds
_ROUND_GRACE = 1.0  # seconds that a round in progress gets at the stop


@dataclass(frozen=True, slots=True)
class _Speaker:
    """Who speaks, to whom, and with what; `credentials` None: in plaintext."""

    identity: Identity
    hardware_id: str
    collector: str
    credentials: Credentials | None


def run(config: AgentConfig) -> None:
    """Run until SIGTERM or SIGINT.

    Raises StateDirError, IdentityError or CredentialsError if it cannot start.
    """
    with claimed(config.state_dir):
        speaker = _plain_speaker(config) if config.tls == "off" else _enrolled_speaker(config)
        spool = _open_spool(config)
        try:
            asyncio.run(_serve(config, speaker, spool))
        finally:
            spool.close()
    log.info("stopped")


def _plain_speaker(config: AgentConfig) -> _Speaker:
    identity = load_identity(config.state_dir, config.hostname)
    return _Speaker(identity, this_hardware(), config.target(None), None)


def _enrolled_speaker(config: AgentConfig) -> _Speaker:
    """With everything checked that can be without the collector, so that a mistake shows at the start."""
    files = CredentialFiles(config.state_dir)
    enrolment = files.enrolment()
    if existing_host_id(config.state_dir / "host_id") is None:
        raise NotEnrolledError(
            f"{config.state_dir}/host_id is missing; restore it, or enrol this machine again:"
            " fleet-agent enroll --new-identity"
        )
    identity = load_identity(config.state_dir, config.hostname or enrolment.hostname)
    if files.close_to_others():
        log.warning(
            "%s/host.pem was open to other users and is not any more; who read it can report as this host,"
            " until it is revoked",
            config.state_dir,
        )
    stored = files.load(identity.host_id)
    if stored.validity.not_after < time.time():
        log.error("this host's certificate expired on %s; %s", stored.validity.until, ENROL_AGAIN)
    hardware_id = this_hardware()
    _tell_if_moved(enrolment, hardware_id)
    return _Speaker(
        identity, hardware_id, config.target(enrolment.collector), Credentials(files, identity.host_id)
    )


def _tell_if_moved(enrolment: Enrolment, hardware_id: str) -> None:
    if enrolment.hardware_id and hardware_id and enrolment.hardware_id != hardware_id:
        log.warning(
            "this host enrolled on other hardware (%s, now %s); if this is a copy of another machine, stop"
            " the agent and run: fleet-agent enroll --new-identity",
            enrolment.hardware_id,
            hardware_id,
        )


def _open_spool(config: AgentConfig) -> DiskSpool | MemorySpool:
    limits = Limits(config.spool.max_age.milliseconds, config.spool.max_size)
    try:
        return DiskSpool(config.state_dir / "spool.db", limits)
    except SpoolError as error:
        # A full or failing disk is what the admins want to hear about, so start all the same.
        log.error("%s; reports are kept in memory and do not survive a restart", error)  # noqa: TRY400
        return MemorySpool(limits)


async def _serve(config: AgentConfig, speaker: _Speaker, spool: DiskSpool | MemorySpool) -> None:
    use_one_heap()
    code = LoadedCode()  # there are no other threads yet
    notifier = Notifier()
    delivery = Delivery(
        speaker.collector,
        spool,
        _hello(config, speaker),
        Timeouts(ack=config.ack_deadline),
        credentials=speaker.credentials,
        on_acked=_FirstAck(notifier, speaker.collector, code),
    )
    stop = _stop_on_signals()
    rounds = _rounds(config, spool, delivery)
    inventory = _inventory(delivery, code)
    log.info(
        "agent %s of %s (%s) reports to %s every %g s, %d reports wait in the spool",
        __version__,
        speaker.identity.hostname,
        speaker.identity.host_id,
        speaker.collector,
        config.interval,
        spool.pending(),
    )
    delivering = asyncio.create_task(delivery.run())
    living = asyncio.create_task(notifier.keep_alive())
    rounds.start()
    inventory.start()
    notifier.tell(systemd.READY, systemd.status(f"reports to {speaker.collector}, none acknowledged yet"))
    try:
        await _until_stopped(stop, delivering)
    finally:
        log.info("stopping")
        notifier.tell(systemd.STOPPING)
        living.cancel()
        rounds.stop()
        inventory.stop()
        if not await asyncio.to_thread(rounds.join, _ROUND_GRACE):
            log.warning("the round in progress hangs and is left behind")
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)


def _stop_on_signals() -> asyncio.Event:
    """What is set when the agent is to stop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP ignored: new settings take a restart")
    return stop


def _rounds(config: AgentConfig, spool: DiskSpool | MemorySpool, delivery: Delivery) -> Periodic:
    """Measures every interval, in a thread; what is measured is in the spool before delivery hears of it."""
    loop = asyncio.get_running_loop()
    measurer = Measurer(config.checks, spool.last_layout)

    def measure() -> None:
        measured = measurer.measure(time.monotonic(), time.time_ns() // 1_000_000)
        spool.append(measured.measured_at, measured.layout, measured.values, measured.results)
        # Stopping closes the loop under a round that hangs.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(delivery.wake)

    schedule = Schedule.starting(time.monotonic(), config.interval, random.random(), random.random())  # noqa: S311 - spreads a fleet
    return Periodic(
        "measuring",
        measure,
        schedule.first,
        lambda now: schedule.next_due(now, random.random()),  # noqa: S311 - the same
    )


def _inventory(delivery: Delivery, code: LoadedCode) -> Periodic:
    """Collects the machine's facts now and then, in a thread."""
    loop = asyncio.get_running_loop()

    def tell_facts() -> None:
        facts = collect_facts()
        with contextlib.suppress(RuntimeError):  # as above
            loop.call_soon_threadsafe(delivery.set_facts, facts)
        code.give_back()  # there may have been another connection since

    return Periodic("collecting facts", tell_facts, time.monotonic(), lambda now: now + FACTS_INTERVAL)


class _FirstAck:
    """The end of the start.

    Tells systemd that reports arrive, because what rolls out a new version waits for the text.
    """

    def __init__(self, notifier: Notifier, collector: str, code: LoadedCode):
        self._notifier = notifier
        self._collector = collector
        self._code = code
        self._told = False

    def __call__(self, _: int) -> None:
        if not self._told:
            self._told = True
            self._notifier.tell(systemd.status(f"reports to {self._collector}, acknowledged"))
            self._code.give_back()


async def _until_stopped(stop: asyncio.Event, delivering: asyncio.Task[None]) -> None:
    """Raises whatever ended the delivery, which nothing should."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((stopping, delivering), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if delivering.done():
        await delivering


def _hello(config: AgentConfig, speaker: _Speaker) -> Hello:
    identity = speaker.identity
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
        instance=uuid.uuid4().hex,
        hardware_id=speaker.hardware_id,
    )
