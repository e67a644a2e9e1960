"""Many agents in one process for the soak: real spools on disk, real delivery, and a ledger.

    python -m tests.soak.hive --collector ADDRESS --folder DIR --first 1 --hosts 20 --interval 1 --ttl 60 \\
        --enroll ADDRESS --token-file FILE --ca-fingerprint SHA256 --state-dir DIR

Each host enrols once, at the real port with a real token, and renews its certificate over its stream; see
`bench.enrolled_host`. Only what the agents measure is made up. Commands, one a line on standard input: `drain` stops measuring
and ends the process when nothing waits any more; `clock MS` shifts the agents' wall clock; `corrupt N`
overwrites the spool of host N, as a broken disk would, once nothing waits in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import sys
import time
import uuid
from pathlib import Path
from typing import IO

from agent.delivery import Delivery
from agent.spool import DiskSpool
from agent.stream import Timeouts
from bench.enrolled_host import Enroller, add_enrolment_options
from fleetpulse import __version__
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Hello, HostId, Layout, Measurement, State
from tests.soak.ledger import LEVEL, WORD

_NAMESPACE = uuid.UUID("7d1c2a4e-3a55-4c58-9d0e-6a4b3f0e9c21")
MEASUREMENT = "soak.level"
_LAYOUT = Layout(
    (
        CheckLayout(CheckKey(LEVEL), (Measurement(MEASUREMENT, "1"),)),
        CheckLayout(CheckKey(WORD), ()),
    )
)
_LEVELS = (0.1, 0.7, 0.95)


def host_id(number: int) -> HostId:
    """The identity of host `number`."""
    return HostId(str(uuid.uuid5(_NAMESPACE, str(number))))


class SoakAgent:
    """One host. Its reports say something new often enough that a lost or doubled one shows."""

    def __init__(
        self, number: int, options: argparse.Namespace, ledger: IO[str], enroller: Enroller | None
    ) -> None:
        self.number = number
        self._hostname = f"soak-{number:03}"
        self._instance = f"{os.getpid()}-{number}"
        self._credentials = enroller.credentials(host_id(number), self._hostname) if enroller else None
        self.clock_shift = 0
        """Milliseconds by which the host's wall clock is wrong."""
        self._options = options
        self._ledger = ledger
        self._folder: Path = options.folder / f"host-{number}"
        self._folder.mkdir(exist_ok=True)
        self._random = random.Random(f"{options.seed}/{number}/{time.time_ns()}")
        # One in four says something new in every report; the others are calm most of the time.
        self._restless = 1.0 if number % 4 == 0 else 0.1
        self._word, self._level = 0, _LEVELS[0]
        self._stopping = asyncio.Event()
        self._open()

    def _open(self) -> None:
        self.spool = DiskSpool(self._folder / "spool.db")
        self._note(resumed=self.spool.last_seq)
        interval = round(self._options.interval * 1000)
        hello = Hello(
            host_id=host_id(self.number),
            hostname=self._hostname,
            machine_id=f"machine-{self.number}",
            boot_id="boot",
            epoch=1,
            agent_version=__version__,
            interval=interval,
            ttl=round(self._options.ttl * 1000),
            instance=self._instance,
        )
        self._delivery = Delivery(
            self._options.collector,
            self.spool,
            hello,
            Timeouts(welcome=10, ack=10),
            credentials=self._credentials,
            on_acked=lambda seq: self._note(acked=seq),
        )
        self._delivering = asyncio.create_task(self._delivery.run())
        self._stopping.clear()
        self._living = asyncio.create_task(self._live())

    def _note(self, **what: object) -> None:
        line = {"host": self.number, "epoch": self.spool.epoch, **what}
        self._ledger.write(json.dumps(line) + "\n")
        self._ledger.flush()

    async def _live(self) -> None:
        interval = self._options.interval
        due = time.monotonic() + self._random.random() * interval
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._stopping.wait()
                    return
            due = max(due + interval, time.monotonic())
            await self._measure()

    async def _measure(self) -> None:
        if self._random.random() < self._restless:
            self._word = self._random.choice([state for state in range(4) if state != self._word])
        if self._random.random() < self._restless:
            self._level = self._random.choice(_LEVELS)
        at = time.time_ns() // 1_000_000 + self.clock_shift
        self._note(seq=self.spool.last_seq + 1, at=at, word=self._word, level=self._level)
        own = (CheckResult(1, State(self._word), f"says {self._word}"),)
        await asyncio.to_thread(self.spool.append, at, _LAYOUT, (self._level,), own)
        self._delivery.wake()

    async def drain(self) -> None:
        """Measure no more, deliver all that waits, and end."""
        self._stopping.set()
        await self._living
        while self.spool.pending():  # noqa: ASYNC110 - the spool has no event for it
            await asyncio.sleep(0.05)
        self._delivering.cancel()
        await asyncio.gather(self._delivering, return_exceptions=True)
        self.spool.close()

    async def break_spool(self) -> None:
        """Everything is acked; then the disk loses the spool, and the agent starts again."""
        await self.drain()
        path = self._folder / "spool.db"
        path.write_bytes(b"\xa5" * path.stat().st_size)
        self._open()


async def _run(options: argparse.Namespace) -> None:
    with (options.folder / f"ledger-{options.first}.jsonl").open("a", encoding="utf-8") as ledger:
        numbers = range(options.first, options.first + options.hosts)
        enroller = Enroller.from_options(options)
        agents = {number: SoakAgent(number, options, ledger, enroller) for number in numbers}
        print("ready", flush=True)
        await _obey(agents)
        await asyncio.gather(*[agent.drain() for agent in agents.values()])


async def _obey(agents: dict[int, SoakAgent]) -> None:
    """Until told to drain; a spool that is being broken is whole again by then."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    broken: list[asyncio.Task[None]] = []
    while (command := (await reader.readline()).decode().split()) and command[0] != "drain":
        if command[0] == "clock":
            for agent in agents.values():
                agent.clock_shift = int(command[1])
        elif command[0] == "corrupt":
            broken.append(asyncio.create_task(agents[int(command[1])].break_spool()))
    await asyncio.gather(*broken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collector", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--interval", type=float, required=True)
    parser.add_argument("--ttl", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    add_enrolment_options(parser)
    options = parser.parse_args()
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(options))


if __name__ == "__main__":
    main()
