"""A thread that does one transaction after the other for coroutines that wait."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from collector.store.errors import StoreConflict, StoreUnavailable
from collector.store.store import Store, Transaction

_Result = TypeVar("_Result")
_Job = Callable[[], None]

_TRIES = 5
_PAUSE = 0.02  # seconds, longer each time


class Busy(StoreUnavailable):
    """More is waiting than is worth waiting for."""


class Clerk:
    """Uses one connection of `store` at a time. `waiting` is how many jobs may wait.

    A daemon thread of its own and not the loop's executor, which the end of the program waits for: a
    database may say nothing.
    """

    def __init__(self, store: Store, name: str, waiting: int):
        self._store = store
        self._name = name
        self._jobs: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[Transaction], _Result], *, write: bool = True) -> _Result:
        """What `work` returns after its transaction was committed. It may be called again on a conflict.

        If nobody waits for the answer any more before the work has begun, it is not done. Raises Busy,
        any other StoreError, and whatever `work` raises.
        """
        answer: Future[_Result] = Future()

        def job() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    result = self._transact(work, write)
                except BaseException as error:  # noqa: BLE001 - it belongs to who waits
                    answer.set_exception(error)
                else:
                    answer.set_result(result)

        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy("busy, try again in a moment") from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(answer)

    def close(self, timeout: float) -> None:
        """Finish what is waiting, for at most so many seconds; nothing may be asked any more."""
        if self._thread is None:
            return
        try:
            self._jobs.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _transact(self, work: Callable[[Transaction], _Result], write: bool) -> _Result:
        for attempt in range(1, _TRIES):
            try:
                with self._store.transaction(write=write) as tx:
                    return work(tx)
            except StoreConflict:
                time.sleep(_PAUSE * attempt)
        with self._store.transaction(write=write) as tx:
            return work(tx)
