"""What must neither end the delivery nor hold it up: layouts that nobody reads, slow disks, programming errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

import grpc
import pytest

from agent.backlog import Waiting
from agent.memory_spool import MemorySpool
from fleetpulse.model import CheckKey, CheckLayout, Layout, Measurement, Report
from tests.agent.scripted_collector import Script, serving, until
from tests.agent.test_stream import LAYOUT, OTHER_LAYOUT, delivering, fill, run

LONG = Layout((CheckLayout(CheckKey("x" * 200), tuple(Measurement(f"{n:0>200}", "1") for n in range(20))),))
WIDE = Layout((CheckLayout(CheckKey("w"), tuple(Measurement(f"m{n}", "1") for n in range(500))),))


def test_a_report_whose_layout_no_message_can_hold_is_dropped_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script(max_message_bytes=3000)
        fill(spool, 2)
        spool.append(0, LONG, (1.0,) * 20, ())
        fill(spool, 1, OTHER_LAYOUT)
        spool.append(0, LONG, (1.0,) * 20, ())
        fill(spool, 2)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == [1, 2, 4, 6, 7]
        assert script.layouts == [LAYOUT, OTHER_LAYOUT]
        assert len(script.hellos) == 1

    run(test)
    assert "report 3 dropped: the layout has" in caplog.text
    assert "report 5 dropped: the layout has" in caplog.text


class _Dropping(MemorySpool):
    """Drops the oldest right after the first look, as the measuring thread may."""

    looks = 0

    def peek(self, max_reports: int, max_bytes: int, known: Collection[bytes] = ()) -> Waiting:
        waiting = super().peek(max_reports, max_bytes, known)
        self.looks += 1
        if self.looks == 1:
            self._take_oldest()
        return waiting


def test_a_report_too_large_that_leaves_by_itself_takes_no_other_with_it() -> None:
    async def test() -> None:
        spool, script = _Dropping(), Script(max_message_bytes=1000)
        spool.append(0, WIDE, (0.0,) * 500, ())
        fill(spool, 2)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == [2, 3]

    run(test)


class _Slow(MemorySpool):
    """Its disk hangs until the event loop lets it go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waiting, self.may_go_on = threading.Event(), threading.Event()
        self.was_let_go: list[bool] = []

    def _hang(self) -> None:
        self.is_waiting.set()
        self.was_let_go.append(self.may_go_on.wait(5))

    def discard(self, seq: int) -> None:
        self._hang()
        super().discard(seq)

    def new_epoch(self) -> None:
        self._hang()
        super().new_epoch()


@pytest.mark.parametrize("why", ["too large", "refused", "new epoch"])
def test_a_disk_that_hangs_does_not_stop_the_event_loop(why: str) -> None:
    async def test() -> None:
        def refuse(report: Report) -> str:
            return "no" if report.seq == 1 and why == "refused" else ""

        spool, script = _Slow(), Script(max_message_bytes=3000, refuse_report=refuse)
        if why == "too large":
            spool.append(0, WIDE, (0.0,) * 500, ())
        if why == "new epoch":
            script.committed_seq = 10
        fill(spool, 2)
        async with serving(script) as port, delivering(port, spool):
            await until(spool.is_waiting.is_set)
            spool.may_go_on.set()
            await until(lambda: spool.pending() == 0)
        assert spool.was_let_go == [True]

    run(test)


def test_no_error_whatever_ends_the_delivery(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        spool, script = MemorySpool(), Script()
        fill(spool, 2)
        errors = iter([KeyError("layout"), ValueError("seq"), OSError("disk")])
        peek = spool.peek

        def failing(*args: object) -> Waiting:
            if error := next(errors, None):
                raise error
            return peek(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(spool, "peek", failing)
        async with serving(script) as port, delivering(port, spool):
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == [1, 2]

    run(test)
    # The server that the test itself runs may log how it was stopped.
    told = [record for record in caplog.records if record.name == "agent.delivery" and record.exc_info]
    assert len(told) == 3


def test_a_channel_that_does_not_close_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        spool = MemorySpool()
        fill(spool, 1)
        script = Script(refuse_hello=(grpc.StatusCode.PERMISSION_DENIED, "who are you?"))
        async with serving(script) as port, delivering(port, spool, refused_delay=0.05):
            await until(lambda: len(script.hellos) >= 2)
            script.refuse_hello = None
            await until(lambda: spool.pending() == 0)

    real = grpc.aio.insecure_channel

    def closing_badly(*args: object, **kwargs: object) -> grpc.aio.Channel:
        channel = real(*args, **kwargs)  # type: ignore[arg-type]
        close = channel.close

        async def fail(*_: object) -> None:
            await close()
            raise RuntimeError("closing failed")

        channel.close = fail  # type: ignore[method-assign]
        return channel

    monkeypatch.setattr(grpc.aio, "insecure_channel", closing_badly)
    run(test)
    assert "who are you?" in caplog.text
    assert "closing failed" not in caplog.text


def test_a_host_for_which_there_was_no_room_is_back_within_its_time_to_live() -> None:
    async def test() -> None:
        spool = MemorySpool()
        fill(spool, 1)
        script = Script(refuse_hello=(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams"))
        async with serving(script) as port, delivering(port, spool, refused_delay=1000.0):
            await until(lambda: len(script.hellos) == 1)
            begin = asyncio.get_running_loop().time()
            script.refuse_hello = None
            await until(lambda: spool.pending() == 0)
            assert asyncio.get_running_loop().time() - begin > 1, "and not at once"

    run(test)
