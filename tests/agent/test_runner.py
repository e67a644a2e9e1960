"""The runner with checks that really hang (on an event), raise, or exit."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest

from agent.checks import Check, ConfiguredCheck, InstanceCheck, SingleCheck, TableCheck
from agent.runner import MAX_HANGING, Runner, round_down
from fleetpulse.model import Measurement, State
from fleetpulse.outcome import CheckOutcome, Failure, NoData, Reading, Verdict

M = Measurement("test.value", "1")
SHORT = 0.1  # seconds


class Single(SingleCheck):
    def __init__(self, function: Callable[[float], Reading]) -> None:
        self.measure = function  # type: ignore[method-assign]

    def measure(self, now: float) -> Reading:
        raise AssertionError


class Table(TableCheck):
    def __init__(self, function: Callable[[float], Mapping[str, Reading]]) -> None:
        self.measure_all = function  # type: ignore[method-assign]

    def measure_all(self, now: float) -> Mapping[str, Reading]:
        raise AssertionError


class Mounts(InstanceCheck):
    """Instances of which some hang until they are let go."""

    def __init__(self, names: Iterable[str], hanging: Iterable[str] = ()) -> None:
        self.names = list(names)
        self.hanging = set(hanging)
        self.let_go = threading.Event()
        self.calls: list[str] = []

    def discover(self) -> Iterable[str]:
        return self.names

    def measure(self, instance: str, now: float) -> Reading:
        self.calls.append(instance)
        if instance in self.hanging:
            self.let_go.wait(30)
        if instance == "missing":
            raise NoData
        if instance == "broken":
            raise OSError(5, "Input/output error", instance)
        return {M: 1.0}


class Hanging(SingleCheck):
    def __init__(self) -> None:
        self.calls = 0
        self.let_go = threading.Event()
        self.returned = threading.Event()

    def measure(self, now: float) -> Reading:
        self.calls += 1
        self.let_go.wait(30)
        self.returned.set()
        return {M: float(self.calls)}


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    check = Hanging()
    yield check
    check.let_go.set()


def runner(**checks: Check | tuple[Check, float]) -> Runner:
    return Runner(
        ConfiguredCheck(name, *check) if isinstance(check, tuple) else ConfiguredCheck(name, check, 5)
        for name, check in checks.items()
    )


def outcomes(runner: Runner, now: float = 0.0) -> dict[str, CheckOutcome]:
    return {outcome.name: outcome for outcome in runner.run(now).outcomes}


def readings(runner: Runner, check: str) -> Mapping[str, Reading | Failure] | Failure:
    return outcomes(runner)[check].readings


def fine(now: float) -> Reading:
    return {M: 1.0}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_three_shapes_of_a_check():
    found = outcomes(
        runner(
            single=Single(fine),
            table=Table(lambda now: {"a": {M: 1.0}, "b": Verdict(State.WARNING, "hm", {M: 2.0})}),
            instances=Mounts(["/", "/home"]),
        )
    )
    assert found == {
        "single": CheckOutcome("single", {"": {M: 1.0}}),
        "table": CheckOutcome("table", {"a": {M: 1.0}, "b": Verdict(State.WARNING, "hm", {M: 2.0})}),
        "instances": CheckOutcome("instances", {"/": {M: 1.0}, "/home": {M: 1.0}}),
    }


def test_checks_know_when_they_are_measured():
    seen: list[float] = []
    run = runner(a=Single(lambda now: seen.append(now) or {}))  # type: ignore[func-returns-value]
    run.run(1000.0)
    run.run(1015.0)
    assert seen == pytest.approx([1000.0, 1015.0], abs=1)
    assert seen[0] >= 1000.0


def raising(error: BaseException) -> Single:
    def measure(now: float) -> Reading:
        raise error

    return Single(measure)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/x"), "[Errno 13] Permission denied: '/x'"),
        (KeyError("total"), "KeyError: 'total'"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError(""), "ValueError: "),
    ],
)
def test_an_exception_is_a_failure_with_its_message_and_the_rest_goes_on(error, message):
    run = runner(bad=raising(error), good=Single(fine))
    for _ in range(2):
        found = outcomes(run)
        assert found["bad"].readings == Failure(message)
        assert found["good"].readings == {"": {M: 1.0}}
    assert run.threads == 1


def test_no_data_is_left_out():
    assert readings(runner(a=raising(NoData())), "a") == {}
    assert readings(runner(a=Mounts(["/", "missing"])), "a") == {"/": {M: 1.0}}


def test_one_instance_that_fails_is_one_failure():
    failed = {"/": {M: 1.0}, "broken": Failure("[Errno 5] Input/output error: 'broken'")}
    assert readings(runner(a=Mounts(["broken", "/"])), "a") == failed


def test_a_hanging_check_fails_after_its_timeout_and_the_rest_is_there(hanging):
    run = runner(a=(hanging, SHORT), b=Single(fine), c=Mounts(["/"]))
    started = time.monotonic()
    found = outcomes(run)
    assert SHORT <= time.monotonic() - started < 2
    assert found["a"].readings == Failure("timed out after 0.1 s")
    assert found["b"].readings == {"": {M: 1.0}}
    assert found["c"].readings == {"/": {M: 1.0}}


def test_a_check_that_still_hangs_is_not_started_again_and_costs_no_time(hanging):
    run = runner(a=(hanging, SHORT), b=Single(fine))
    run.run(0.0)
    started = time.monotonic()
    for _ in range(5):
        found = outcomes(run)
        assert str(found["a"].readings).startswith("Failure(message='still hanging after 0 s")
        assert found["b"].readings == {"": {M: 1.0}}
    assert time.monotonic() - started < SHORT
    assert hanging.calls == 1
    assert run.threads in (2, 3)  # the stuck one, one at work, and help for it on a machine that is slow


def test_a_check_that_came_back_is_run_again_and_its_late_answer_is_thrown_away(hanging):
    run = runner(a=(hanging, SHORT), b=Single(fine))
    run.run(0.0)
    hanging.let_go.set()
    hanging.returned.wait(10)
    until(lambda: run.threads == 1)
    assert readings(run, "a") == {"": {M: 2.0}}
    assert run.threads == 1


def test_one_hung_mount_makes_only_that_instance_unknown():
    mounts = Mounts(["/", "/nfs", "/home"], hanging=["/nfs"])
    run = runner(filesystem=(mounts, SHORT), load=Single(fine))
    for expected in ("timed out after 0.1 s", "still hanging after 0 s"):
        found = outcomes(run)
        assert found["filesystem"].readings == {"/": {M: 1.0}, "/nfs": Failure(expected), "/home": {M: 1.0}}
        assert found["load"].readings == {"": {M: 1.0}}
    assert mounts.calls.count("/nfs") == 1
    mounts.let_go.set()


def test_a_hung_discovery_fails_the_whole_check():
    release = threading.Event()

    class Blocked(Mounts):
        def discover(self) -> Iterable[str]:
            release.wait(30)
            return ["/"]

    run = runner(filesystem=(Blocked(["/"]), SHORT), load=Single(fine))
    assert readings(run, "filesystem") == Failure("timed out after 0.1 s")
    release.set()
    until(lambda: run.threads == 1)
    assert readings(run, "filesystem") == {"/": {M: 1.0}}


def test_a_dead_server_with_many_mounts_takes_a_bounded_number_of_threads():
    dead = [f"/nfs/{number:02}" for number in range(MAX_HANGING + 10)]
    mounts = Mounts(["/", *dead], hanging=dead)
    run = runner(filesystem=(mounts, 0.05), load=(Single(fine), 5))
    for _ in range(3):
        started = time.monotonic()
        found = outcomes(run)
        assert time.monotonic() - started < 4
        assert found["load"].readings == {"": {M: 1.0}}
        seen = found["filesystem"].readings
        assert isinstance(seen, dict)
        assert seen.pop("/") == {M: 1.0}
        assert seen.keys() == set(dead)
        assert all(isinstance(reading, Failure) for reading in seen.values())
    assert len(set(mounts.calls)) - 1 == MAX_HANGING
    assert sum("not started in this round" in str(reading) for reading in seen.values()) == 10
    assert run.threads <= MAX_HANGING + 2
    mounts.let_go.set()


def test_all_jobs_respect_one_deadline():
    """Each takes nearly its timeout; together they take hardly longer than one."""
    gate = threading.Event()
    slow = {
        f"slow{number}": (Single(lambda now: (gate.wait(0.3) and {}) or {M: 1.0}), 0.4) for number in range(8)
    }
    started = time.monotonic()
    found = outcomes(runner(**slow))
    assert time.monotonic() - started < 1.2
    assert sum(outcome.readings == {"": {M: 1.0}} for outcome in found.values()) >= 4


def test_a_healthy_machine_needs_one_thread():
    run = runner(
        **{f"check{number}": Single(fine) for number in range(50)}, mounts=Mounts(map(str, range(20)))
    )
    for _ in range(20):
        run.run(0.0)
    assert run.threads == 1


def test_durations_are_by_check():
    def busy(now: float) -> Reading:
        end = time.monotonic() + 0.03
        while time.monotonic() < end:
            pass
        return {}

    durations = runner(a=Single(busy), b=Single(fine)).run(0.0).durations
    assert 0.03 <= durations["a"] < 3
    assert 0 <= durations["b"] < durations["a"]


def test_no_checks_at_all():
    assert runner().run(0.0).outcomes == []


def test_stop_ends_a_waiting_round(hanging):
    run = runner(a=(hanging, 30), b=Single(fine))
    threading.Timer(0.1, run.stop).start()
    started = time.monotonic()
    assert readings(run, "a") == Failure("not finished when the round ended")
    assert time.monotonic() - started < 5


def test_a_signal_handler_that_raises_leaves_the_runner_usable(hanging):
    class Interrupted(Exception):
        pass

    def handler(*_: object) -> None:
        raise Interrupted

    run = runner(a=(hanging, 30), b=Single(fine))
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(Interrupted):
            run.run(0.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    found = outcomes(run)
    assert "still hanging" in str(found["a"].readings)
    assert found["b"].readings == {"": {M: 1.0}}
    assert hanging.calls == 1


def test_a_process_ends_at_sigterm_while_a_check_hangs():
    """A real process whose check never returns, not even at exit."""
    script = """
import signal, sys, threading
from agent.checks import ConfiguredCheck, SingleCheck
from agent.runner import Runner
class Hang(SingleCheck):
    def measure(self, now):
        print("hanging", flush=True)
        threading.Event().wait()
runner = Runner([ConfiguredCheck("hang", Hang(), 60)])
signal.signal(signal.SIGTERM, lambda *_: runner.stop())
runner.run(0.0)
sys.exit(7)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.terminate()
        assert process.wait(10) == 7


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, 0), (1, 1), (4.9, 2), (15, 10), (60, 50), (99.9, 50), (100, 100), (7200, 5000)],
)
def test_a_growing_number_changes_seldom(seconds, shown):
    assert round_down(seconds) == shown


def test_rates_follow_the_moment_of_measurement():
    """A job that starts late gets a later `now`."""
    ticks = iter(range(100))
    seen: list[float] = []

    def measure(now: float) -> Reading:
        seen.append(now)
        return {M: math.nan}

    run = Runner(
        [ConfiguredCheck("a", Single(measure), 1e6), ConfiguredCheck("b", Single(measure), 1e6)],
        clock=lambda: float(next(ticks)),
    )
    run.run(500.0)
    assert 500 <= seen[0] < seen[1] < 600


def test_a_queue_that_moves_gets_no_second_thread():
    """By a clock that stands still no job is slow, however often the waiting round looks."""
    pause = threading.Event()
    slow = {f"slow{number}": Single(lambda now: {M: float(pause.wait(0.07))}) for number in range(3)}
    run = Runner((ConfiguredCheck(name, check, 5) for name, check in slow.items()), clock=lambda: 0.0)
    run.run(0.0)
    assert run.threads == 1


def test_the_deadline_cuts_what_started_late():
    """Every job hangs, so the last ones start long after the first."""
    hanging = [Hanging() for _ in range(MAX_HANGING)]
    run = runner(**{f"hang{number:02}": (check, 0.2) for number, check in enumerate(hanging)})
    messages = [str(outcome.readings) for outcome in run.run(0.0).outcomes]
    assert "timed out after 0.2 s" in messages[0]
    assert "before the round ended" in messages[-1] or "when the round ended" in messages[-1]
    for check in hanging:
        check.let_go.set()
