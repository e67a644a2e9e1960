"""Simulated hosts inside the test's own process, so that it can see at any moment what was acked.

Every report of a host changes the state of its one check, so a report that is lost, or counted twice,
is missing or double among the events.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from types import TracebackType

from agent.backoff import Backoff
from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
from agent.spool import Limits
from agent.stream import Timeouts
from bench.enrolled_host import Enroller
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Hello, HostId, Layout, Measurement, State
from tests.processes import wait_until

_LAYOUT = Layout((CheckLayout(CheckKey("swing"), (Measurement("swing.value", "1"),)),))
_STATES = (State.OK, State.CRITICAL)


class ReportingFleet:
    """Hosts that report every `interval` seconds until `drain`. Attributes may be read at any time.

    They are called host-0, host-1 and so on. With an `enroller` each enrols first, and speaks TLS.
    """

    def __init__(
        self,
        address: str,
        hosts: int,
        interval: float = 0.3,
        *,
        message: str = "",
        ack_timeout: float = 10,
        enroller: Enroller | None = None,
    ):
        self._spools = {HostId(str(uuid.uuid4())): MemorySpool(Limits()) for _ in range(hosts)}
        self._credentials = [
            enroller.credentials(host_id, f"host-{number}", f"machine-{number}") if enroller else None
            for number, host_id in enumerate(self._spools)
        ]
        self.acked: dict[str, int] = dict.fromkeys(self._spools, 0)
        self.made: dict[str, int] = dict.fromkeys(self._spools, 0)
        self._interval = interval
        self._message = message
        self._deliveries: list[Delivery] = []
        self._measuring = threading.Event()
        self._measuring.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(address, ack_timeout), daemon=True)

    def __enter__(self) -> ReportingFleet:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    def drain(self, seconds: float = 60) -> None:
        """Measure no more, and wait until everything is acked."""
        self._measuring.clear()
        wait_until(self._is_drained, seconds=seconds, what="everything acked")

    def _is_drained(self) -> bool:
        return self.acked == self.made

    def _run(self, address: str, ack_timeout: float) -> None:
        self._end = asyncio.Event()
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live(address, ack_timeout))

    async def _live(self, address: str, ack_timeout: float) -> None:
        interval = round(self._interval * 1000)
        tasks = []
        for number, (host_id, spool) in enumerate(self._spools.items()):
            hello = Hello(
                host_id=host_id,
                hostname=f"host-{number}",
                machine_id=f"machine-{number}",
                boot_id="boot",
                epoch=spool.epoch,
                agent_version="0",
                interval=interval,
                ttl=60_000,
                instance=host_id,
            )

            def note(seq: int, host_id: str = host_id) -> None:
                self.acked[host_id] = seq

            delivery = Delivery(
                address,
                spool,
                hello,
                Timeouts(welcome=10, ack=ack_timeout),
                credentials=self._credentials[number],
                backoff=Backoff(0.2, 1.0),
                on_acked=note,
            )
            self._deliveries.append(delivery)
            tasks.append(asyncio.create_task(delivery.run()))
        tasks.append(asyncio.create_task(self._measure()))
        await self._end.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _measure(self) -> None:
        while True:
            if self._measuring.is_set():
                for spool, delivery in zip(self._spools.items(), self._deliveries, strict=True):
                    self._report(*spool, delivery)
            await asyncio.sleep(self._interval)

    def _report(self, host_id: str, spool: MemorySpool, delivery: Delivery) -> None:
        number = spool.last_seq + 1
        own = (CheckResult(0, _STATES[number % 2], f"{number} {self._message}"),)
        self.made[host_id] = spool.append(time.time_ns() // 1_000_000, _LAYOUT, (float(number),), own)
        delivery.wake()
