"""A fleet of simulated agents in a few processes (`bench.fleet_agents`), and how it comes to its certificates.

Thousands of machines that enrol take minutes, which is not what is measured: `certify` writes what enrolment
leaves behind, on both sides, with the collector's own CA and its own store.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from agent.certificate import pem_blocks
from agent.credential_files import CA_FILE, HOST_FILE
from agent.keys import make_key_and_request
from bench.fleet_agents import hello_of
from bench.simulated_host import SimulatedHost
from bench.usage import cpu_seconds, memory
from collector.config import Identity
from collector.core.status import HostRecord
from collector.identity.authority import Issued
from collector.identity.keyring import Keyring
from collector.store.certificates import CertificateRow, add_certificate
from collector.store.hosts import add_hosts, list_hosts
from collector.store.store import Store

_LIFETIME = 90 * 86_400.0
SEED = 1


def certify(
    store: Store, identity_dir: Path, state_dir: Path, hosts: int, interval: float, ttl: float
) -> None:
    """Make hosts of the first `hosts` simulated machines, each with a folder of certificates in `state_dir`."""
    keyring = Keyring(Identity(identity_dir), lambda: ())
    material = keyring.load()
    assert material.authority is not None
    now = time.time_ns() // 1_000_000
    machines = [SimulatedHost(number, SEED, story=False) for number in range(1, hosts + 1)]
    certificates: dict[str, Issued] = {}
    for machine in machines:
        key, request = make_key_and_request()
        csr = pem_blocks(request, "CERTIFICATE REQUEST")[0]
        issued = material.authority.sign_host(csr, machine.host_id, now, _LIFETIME)
        folder = state_dir / machine.host_id
        folder.mkdir(mode=0o700, parents=True)
        (folder / HOST_FILE).write_bytes(key + issued.chain)
        (folder / CA_FILE).write_bytes(material.bundle)
        certificates[machine.host_id] = issued
    with store.transaction() as tx:
        add_hosts(tx, [_record(machine, interval, ttl) for machine in machines], now)
        for number, host_id, _ in list_hosts(tx):
            one = certificates[host_id]
            add_certificate(
                tx, CertificateRow(one.fingerprint, number, one.issuer, one.issued_at, one.not_after)
            )


def _record(machine: SimulatedHost, interval: float, ttl: float) -> HostRecord:
    hello = hello_of(machine, interval, ttl)
    return HostRecord(
        hello.host_id,
        hello.hostname,
        hello.machine_id,
        boot_id="",
        agent_version=hello.agent_version,
        address="127.0.0.1",
        interval=hello.interval,
        ttl=hello.ttl,
        groups=hello.groups,
    )


class Progress(NamedTuple):
    """How far a fleet is. Times by the monotonic clock."""

    reached_at: list[float]
    """When hosts were acked what they aim at, the first one first."""
    waiting: int
    """Reports."""


class Fleet:
    """Hosts 1 to `hosts`, which begin to connect at once, over `spread` seconds."""

    def __init__(
        self,
        address: str,
        hosts: int,
        processes: int,
        *,
        state_dir: Path | None = None,
        interval: float = 15.0,
        ttl: float = 45.0,
        spread: float = 0.0,
        change: float = 0.01,
    ):
        self.hosts = hosts
        self.endings: list[tuple[float, str]] = []
        """When streams ended, by the monotonic clock, and why."""
        command = [sys.executable, "-m", "bench.fleet_agents", "--collector", address, "--seed", str(SEED)]
        command += ["--interval", str(interval), "--ttl", str(ttl), "--spread", str(spread)]
        command += ["--change", str(change)]
        if state_dir is not None:
            command += ["--state-dir", str(state_dir)]
        bounds = [hosts * number // processes for number in range(processes + 1)]
        self._processes = [
            subprocess.Popen(
                [*command, "--first", str(begin + 1), "--hosts", str(end - begin)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            for begin, end in pairwise(bounds)
        ]

    def __enter__(self) -> Fleet:
        for process in self._processes:
            _answer(process)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all at once, like machines that lose power."""
        for process in self._processes:
            process.kill()
            process.communicate()

    @property
    def cpu(self) -> float:
        """Seconds of CPU time so far."""
        return sum(cpu_seconds(process.pid) for process in self._processes)

    @property
    def rss(self) -> int:
        """Bytes."""
        return sum(memory(process.pid).rss for process in self._processes)

    def tell(self, command: str = "look") -> Progress:
        """Have all processes do something, see `bench.fleet_agents`; how far the hosts are then."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{command}\n")
        answers = [_answer(process) for process in self._processes]
        for answer in answers:
            self.endings += [(at, why) for at, why in answer["endings"]]
        reached = sorted(at for answer in answers for at in answer["reached_at"])
        return Progress(reached, sum(answer["waiting"] for answer in answers))

    def wait(self, seconds: float, meanwhile: Callable[[Progress], object] = lambda _: None) -> Progress:
        """Wait until every host has reached what it aims at; ends the benchmark if that takes too long."""
        deadline = time.monotonic() + seconds
        while True:
            progress = self.tell()
            meanwhile(progress)
            if len(progress.reached_at) == self.hosts:
                return progress
            if time.monotonic() > deadline:
                last = "; ".join(why for _, why in self.endings[-3:])
                raise SystemExit(
                    f"after {seconds:g} s only {len(progress.reached_at)} of {self.hosts} hosts are there: {last}"
                )
            time.sleep(0.25)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process of simulated agents has ended")
    said: dict[str, Any] = json.loads(line)
    return said
