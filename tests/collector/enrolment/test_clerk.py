"""Who does the work with the database for those who wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from collector.store.clerk import Busy, Clerk
from collector.store.errors import StoreConflict
from collector.store.store import Transaction
from tests.collector.enrolment_site import EnrolmentSite


def test_the_queue_is_bounded_and_the_impatient_are_not_served(sqlite_site: EnrolmentSite) -> None:
    clerk = Clerk(sqlite_site.store, "test", 1)
    done: list[str] = []

    async def crowd() -> None:
        begun, hold = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(_: Transaction) -> bool:
            loop.call_soon_threadsafe(begun.set)
            return hold.wait(20)

        first = asyncio.create_task(clerk.run(slow))
        await begun.wait()
        second = asyncio.create_task(clerk.run(lambda _: done.append("second")))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="busy, try again"):
            await clerk.run(lambda _: done.append("third"))
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        hold.set()
        assert await first

    sqlite_site.run(crowd())
    clerk.close(5)
    assert done == []


def test_conflicts_are_repeated_for_a_while(sqlite_site: EnrolmentSite) -> None:
    clerk = Clerk(sqlite_site.store, "test", 1)
    tries: list[int] = []

    def work(_: Transaction) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise StoreConflict("again")
        return "done"

    def hopeless(_: Transaction) -> None:
        raise StoreConflict("again")

    assert sqlite_site.run(clerk.run(work)) == "done"
    with pytest.raises(StoreConflict):
        sqlite_site.run(clerk.run(hopeless))
    clerk.close(5)
