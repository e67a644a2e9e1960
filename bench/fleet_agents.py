"""Many agents in one process, which do what a benchmark tells them. Runs as a process.

`python -m bench.fleet_agents --collector ADDRESS --hosts N --first NUMBER` plays hosts with the agent's own delivery:
each over a connection of its own, from a spool in memory, because thousands that are flushed to one disk would
measure that disk. Only their measurements are made up: 12 checks and 48 values. With --state-dir they speak TLS
with the certificates that are there (see `bench.fleet`).

Prints one JSON object for each line on its standard input:

    aim next   look for every host's next ack from now on
    aim last   look for the ack of every host's newest report
    fill N     put N reports into every spool, as if N intervals had passed
    look       how far they are: see `_Agents.look`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from agent.credential_files import CredentialFiles
from agent.credentials import Credentials
from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
from bench.simulated_host import GROUP, SimulatedHost
from bench.stream import LAYOUT
from fleetpulse import __version__
from fleetpulse.model import Hello


class Agent:
    """One host's agent."""

    def __init__(self, number: int, options: argparse.Namespace):
        host = SimulatedHost(number, options.seed, story=False)
        self._random = random.Random(f"{options.seed}/{number}")
        self._change: float = options.change
        self._values = [self._random.uniform(0.1, 0.6) for _ in range(LAYOUT.series_count)]
        self._is_full = False
        self.spool = MemorySpool()
        credentials = None
        if options.state_dir:
            credentials = Credentials(CredentialFiles(options.state_dir / host.host_id), host.host_id)
        self.delivery = Delivery(
            options.collector,
            self.spool,
            hello_of(host, options.interval, options.ttl),
            credentials=credentials,
            on_acked=self._on_acked,
        )
        self.delivery.set_facts(host.facts())
        self.aim = 1
        self.reached_at = 0.0
        """When it was acked what it aims at, by the monotonic clock; 0: not yet."""

    def report(self, measured_at: float) -> None:
        """Measure at that moment (Unix time), and report."""
        values = self._values
        values[self._random.randrange(2, len(values))] = self._random.uniform(0.1, 0.6)
        if self._random.random() < self._change:
            self._is_full = not self._is_full
        values[0] = 0.9 if self._is_full else 0.3
        self.spool.append(int(measured_at * 1000), LAYOUT, tuple(values), ())

    def aim_at(self, seq: int) -> None:
        """Note when everything up to `seq` is acked."""
        self.aim = seq
        self.reached_at = time.monotonic() if self.delivery.acked_seq >= seq else 0.0

    def _on_acked(self, seq: int) -> None:
        if seq >= self.aim and not self.reached_at:
            self.reached_at = time.monotonic()


def hello_of(host: SimulatedHost, interval: float, ttl: float) -> Hello:
    """What a host's agent says first. Durations in seconds."""
    return Hello(
        host_id=host.host_id,
        hostname=host.name,
        machine_id=host.machine_id,
        boot_id=host.boot_id,
        epoch=1,
        agent_version=__version__,
        interval=round(interval * 1000),
        ttl=round(ttl * 1000),
        groups=(GROUP,),
        instance="1",
    )


class Endings(logging.Handler):
    """Why streams ended, as delivery tells its log: (when by the monotonic clock, in which words)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not isinstance(record.args, tuple):
            return
        if record.msg.startswith("stream to %s ended"):
            self.seen.append((time.monotonic(), str(record.args[1])))
        elif record.levelno >= logging.ERROR:
            self.seen.append((time.monotonic(), record.getMessage()))


class _Agents:
    """All of them, on the running loop."""

    def __init__(self, options: argparse.Namespace, endings: Endings):
        self._interval: float = options.interval
        self._endings = endings
        self._loop = asyncio.get_running_loop()
        self.all = [Agent(options.first + number, options) for number in range(options.hosts)]
        self._tasks: list[asyncio.Task[None]] = []
        phases = random.Random(options.first)
        for number, agent in enumerate(self.all):
            self._loop.call_later(options.spread * number / options.hosts, self._start, agent)
            due = self._loop.time() + phases.random() * self._interval
            self._loop.call_at(due, self._tick, agent, due)

    def _start(self, agent: Agent) -> None:
        self._tasks.append(self._loop.create_task(agent.delivery.run()))

    def _tick(self, agent: Agent, due: float) -> None:
        agent.report(time.time())
        agent.delivery.wake()
        # A loop that is behind leaves ticks out rather than fall behind further.
        missed = max(0, int((self._loop.time() - due) / self._interval))
        due += (1 + missed) * self._interval
        self._loop.call_at(due, self._tick, agent, due)

    def obey(self, line: str) -> dict[str, Any]:
        """Do what a line of the standard input says; what to print."""
        what, _, argument = line.strip().partition(" ")
        if what == "aim":
            self._aim(at_last=argument == "last")
        elif what == "fill":
            self._fill(int(argument))
        return self.look()

    def look(self) -> dict[str, Any]:
        """When which hosts were acked what they aim at, what waits, and why streams ended since the last look."""
        endings, self._endings.seen = self._endings.seen, []
        return {
            "reached_at": [agent.reached_at for agent in self.all if agent.reached_at],
            "waiting": sum(agent.spool.pending() for agent in self.all),
            "endings": endings,
        }

    def _aim(self, *, at_last: bool) -> None:
        for agent in self.all:
            agent.aim_at(agent.spool.last_seq if at_last else agent.delivery.acked_seq + 1)

    def _fill(self, count: int) -> None:
        now = time.time()
        for agent in self.all:
            for number in range(count, 0, -1):
                agent.report(now - number * self._interval)
            agent.delivery.wake()


async def _run(options: argparse.Namespace, endings: Endings) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    agents = _Agents(options, endings)
    print(json.dumps({"hosts": len(agents.all)}), flush=True)
    while line := await reader.readline():
        print(json.dumps(agents.obey(line.decode())), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collector", required=True, metavar="ADDRESS")
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--first", type=int, default=1, metavar="NUMBER")
    parser.add_argument("--interval", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--ttl", type=float, default=45.0, metavar="SECONDS")
    parser.add_argument("--spread", type=float, default=0.0, help="seconds over which the first ones connect")
    parser.add_argument("--change", type=float, default=0.01, help="share of reports that change a state")
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="a folder of certificates for each host"
    )
    parser.add_argument("--seed", type=int, default=1)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    endings = Endings()
    deliveries = logging.getLogger("agent.delivery")
    deliveries.setLevel(logging.DEBUG)
    deliveries.propagate = False
    deliveries.addHandler(endings)
    asyncio.run(_run(parser.parse_args(), endings))


if __name__ == "__main__":
    main()
