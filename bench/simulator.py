"""Many agents in one process: simulated hosts, real delivery, real wire.

    python -m bench.simulator --collector 127.0.0.1:18443 --hosts 20 --interval 2s --seconds 60 --story

Each host has the agent's own delivery over a connection of its own; only its measurements are made up
and its spool is in memory. With --enroll each enrols first and speaks TLS. At the end, be it by --seconds,
SIGTERM or Ctrl-C, no more is measured, and what is left is delivered. Prints one JSON line then: hosts, seconds,
reports_made, reports_acked, reports_waiting, and the median_wait of a report for its ack in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import resource
import signal
import statistics
import time
from collections import deque
from pathlib import Path

from agent.credentials import Credentials
from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
from agent.spool import Limits
from agent.stream import Timeouts
from bench.enrolled_host import Enroller, add_enrolment_options
from bench.simulated_host import GROUP, LAYOUT, Role, SimulatedHost
from fleetpulse import __version__
from fleetpulse.config import Duration
from fleetpulse.model import Hello

_SPOOL = Limits(max_size=1 << 20)
_WAITS = 200_000  # of which the median is told: of the last so many reports


class _Player:
    """One host's agent: made up measurements in, reports out."""

    def __init__(
        self,
        host: SimulatedHost,
        options: argparse.Namespace,
        credentials: Credentials | None,
        waits: deque[float],
    ) -> None:
        self.host = host
        self._credentials = credentials
        self._waits = waits
        self._made_at: dict[int, float] = {}  # by the number of a report that is not acked
        self._instance = 0  # counts the agents that the host had
        self.spool = MemorySpool(_SPOOL)
        self.acked = 0
        self._options = options
        self._delivery: Delivery | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether an agent runs on the host."""
        return self._delivery is not None

    def tick(self, now: float) -> None:
        """Measure once and report; or be dead, if the story says so."""
        host = self.host
        if host.is_silent(now):
            self.stop()
            return
        if self._delivery is None:
            if host.role is Role.REBOOTS and self.spool.last_seq:
                host.reboot(now)
            self._start()
        wall = time.time()
        seq = self.spool.append(int(wall * 1000), LAYOUT, host.values(now, wall), host.results(now))
        self._made_at[seq] = time.monotonic()
        if self._delivery is not None:
            self._delivery.wake()

    def stop(self) -> None:
        """End the stream as a killed agent would."""
        if self._task is not None:
            self._task.cancel()
        self._delivery = self._task = None

    def _start(self) -> None:
        options = self._options
        interval = round(options.interval * 1000)
        self._instance += 1
        hello = Hello(
            host_id=self.host.host_id,
            hostname=self.host.name,
            machine_id=self.host.machine_id,
            boot_id=self.host.boot_id,
            epoch=1,
            agent_version=__version__,
            interval=interval,
            ttl=round(options.ttl * 1000) or 3 * interval,
            groups=(GROUP,),
            instance=f"{os.getpid()}-{self._instance}",
        )
        self._delivery = Delivery(
            options.collector,
            self.spool,
            hello,
            Timeouts(ack=max(options.interval, options.ack_timeout)),
            credentials=self._credentials,
            on_acked=self._on_acked,
        )
        self._delivery.set_facts(self.host.facts())
        self._task = asyncio.create_task(self._delivery.run())

    def _on_acked(self, seq: int) -> None:
        self.acked = seq
        now = time.monotonic()
        for made in [made for made in self._made_at if made <= seq]:
            self._waits.append(now - self._made_at.pop(made))


async def _play(players: list[_Player], options: argparse.Namespace, stop: asyncio.Event) -> float:
    """Tick every player at its own phase until stopped; seconds that it took."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    interval = float(options.interval)
    phases = random.Random(options.seed)

    def tick(player: _Player, due: float) -> None:
        if stop.is_set():
            return
        player.tick(loop.time() - begin)
        # A loop that is behind leaves ticks out rather than fall behind further.
        missed = max(0, int((loop.time() - due) / interval))
        due += (1 + missed) * interval
        loop.call_at(due, tick, player, due)

    for player in players:
        due = begin + phases.random() * interval
        loop.call_at(begin if options.burst else due, tick, player, due)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(options.seconds or None):
            await stop.wait()
    stop.set()
    return loop.time() - begin


async def _drain(players: list[_Player], seconds: float) -> None:
    """Wait until the living have nothing left to send."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for player in players:
                while player.is_alive and player.spool.pending():  # noqa: ASYNC110 - at the end only
                    await asyncio.sleep(0.02)


def _players(options: argparse.Namespace, waits: deque[float]) -> list[_Player]:
    enroller = Enroller.from_options(options)
    players = []
    for number in range(1, options.hosts + 1):
        host = SimulatedHost(number, options.seed, story=options.story)
        credentials = enroller.credentials(host.host_id, host.name, host.machine_id) if enroller else None
        players.append(_Player(host, options, credentials, waits))
    return players


async def _run(options: argparse.Namespace, players: list[_Player], waits: deque[float]) -> dict[str, object]:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    seconds = await _play(players, options, stop)
    await _drain(players, options.drain)
    for player in players:
        player.stop()
    if options.ledger:
        ledger = {player.host.host_id: player.acked for player in players}
        options.ledger.write_text(json.dumps(ledger) + "\n", encoding="utf-8")
    return {
        "hosts": len(players),
        "seconds": round(seconds, 3),
        "reports_made": sum(player.spool.last_seq for player in players),
        "reports_acked": sum(player.acked for player in players),
        "reports_waiting": sum(player.spool.pending() for player in players),
        "median_wait": round(statistics.median(waits), 3) if waits else None,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.simulator", description=__doc__.split("\n")[0])
    parser.add_argument("--collector", default="127.0.0.1:18443", metavar="ADDRESS")
    parser.add_argument("--hosts", type=int, default=20, metavar="N")
    parser.add_argument("--interval", type=_duration, default=_duration("2s"), metavar="DURATION")
    parser.add_argument("--ttl", type=_duration, default=Duration(0), help="three intervals by default")
    parser.add_argument("--ack-timeout", type=_duration, default=_duration("10s"), metavar="DURATION")
    parser.add_argument("--seconds", type=float, default=0, help="end by itself after so long; 0: never")
    parser.add_argument(
        "--drain", type=float, default=5, metavar="SECONDS", help="that the last reports get to be acked"
    )
    parser.add_argument("--story", action="store_true", help="let disks fill, hosts die, come back, reboot")
    parser.add_argument("--burst", action="store_true", help="all hosts connect in the same moment")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="write the last acked seq by host id")
    parser.add_argument("--seed", type=int, default=1, help="other hosts and values for another number")
    parser.add_argument("--log-level", default="ERROR", help="of the agents' delivery")
    add_enrolment_options(parser)
    return parser.parse_args()


def _duration(text: str) -> Duration:
    value = Duration.parse(text)
    if value < 0.1:
        raise ValueError("at least 100ms")
    return value


def main() -> None:
    options = _options()
    logging.basicConfig(level=options.log_level.upper(), format="%(message)s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    waits: deque[float] = deque(maxlen=_WAITS)
    players = _players(options, waits)
    print(json.dumps(asyncio.run(_run(options, players, waits))), flush=True)


if __name__ == "__main__":
    main()
