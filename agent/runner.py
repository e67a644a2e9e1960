"""Runs every check with timing, a timeout and a catch, so that none can delay or stop the rest.

Threads cannot be killed, and a call that waits for a dead disk or server never returns. So whoever
waits for a job gives it up after its timeout, leaves it its thread, and does not start it again
before it has come back. One worker thread does all the jobs one after the other; another is added
only when the queue stands still, so a round on a healthy machine costs two thread switches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.checks import ConfiguredCheck, InstanceCheck, TableCheck
from fleetpulse.outcome import CheckOutcome, Failure, NoData, Reading

PATIENCE = 0.05
"""Seconds that a queue may stand still before another worker helps."""
MAX_HANGING = 16
"""With so many jobs stuck, only those are started that answered in the round before."""
MAX_THREADS = 64
"""Workers at most, stuck ones included."""

GRACE = 0.5
"""Seconds that a round may take longer than the longest timeout: its last job starts a bit later."""

_STOP_POLL = 0.2  # seconds after which a waiting round notices stop()


class JobId(NamedTuple):
    """A check, or one of its instances. `instance` is None where that is not known (yet)."""

    check: str
    instance: str | None = None


class _Instances(NamedTuple):
    """A check's first job found out what there is; each is measured by a job of its own."""

    names: tuple[str, ...]


class _Table(NamedTuple):
    """A check's first job measured everything."""

    readings: Mapping[str, Reading]


_Result = _Instances | _Table | Reading | Failure | None
"""What a job came to; None is NoData."""


@dataclass(slots=True, eq=False)
class _Job:
    id: JobId
    call: Callable[[float], _Result]
    timeout: float
    started: float = 0.0
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found out, in the order of the checks."""

    outcomes: Sequence[CheckOutcome]
    durations: Mapping[str, float]
    """Seconds that each check took; those given up count until then."""


@dataclass(slots=True)
class _Progress:
    """One round while it runs. Everything here is guarded by the runner's lock."""

    started: float
    deadline: float
    now: float
    pending: list[_Job] = field(default_factory=list)
    running: list[_Job] = field(default_factory=list)
    done: dict[JobId, _Result] = field(default_factory=dict)
    answered: set[JobId] = field(default_factory=set)
    durations: dict[str, float] = field(default_factory=dict)


class Runner:
    """Runs checks in rounds. `clock` yields monotonic seconds."""

    def __init__(
        self, checks: Iterable[ConfiguredCheck], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = {check.name: check for check in checks}
        self._clock = clock
        self._longest = max((check.timeout for check in self._checks.values()), default=0.0)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # workers wait here for jobs
        self._finished = threading.Condition(self._lock)  # the round waits here for workers
        self._round: _Progress | None = None
        self._hanging: dict[JobId, _Job] = {}
        self._answered: set[JobId] = set()
        self._threads = 0
        self._idle = 0
        self._stopped = False

    @property
    def threads(self) -> int:
        """Worker threads that exist, stuck ones included."""
        return self._threads

    def stop(self) -> None:
        """Make a round that is waiting end at once, without what is missing. Safe in a signal handler."""
        self._stopped = True

    def run(self, now: float) -> Round:
        """Run every check once. `now` is in monotonic seconds and is what rates are computed with.

        Returns when all have answered or the longest of their timeouts is over. Not for several
        threads at once.
        """
        started = self._clock()
        current = _Progress(started, started + self._longest + GRACE, now)
        with self._lock:
            self._round = current
            for check in self._checks.values():
                self._add(current, _first_job(check))
            try:
                while self._tend(current):
                    pass
            finally:
                for job in current.running:  # only if a signal handler raised in here
                    self._give_up(job)
                self._round = None
            self._answered = current.answered
        return Round([_outcome(name, current.done) for name in self._checks], current.durations)

    def _tend(self, current: _Progress) -> bool:
        """Give up what is late, get help for what waits, then wait. False when the round is over."""
        clock = self._clock()
        over = self._stopped or clock >= current.deadline
        for job in [job for job in current.running if over or clock >= job.started + job.timeout]:
            current.running.remove(job)
            self._give_up(job)
            spent = clock - job.started
            late = spent >= job.timeout
            message = f"timed out after {job.timeout:g} s" if late else "not finished when the round ended"
            self._finish(current, job, Failure(message), spent)
        hanging = len(self._hanging)
        for job in [job for job in current.pending if over or not self._may_start(job, hanging)]:
            current.pending.remove(job)
            why = "before the round ended" if over else f"in this round, as {hanging} other jobs hang"
            current.done[job.id] = Failure(f"not started {why}")
        if not current.pending and not current.running:
            return False
        if current.pending and all(clock >= job.started + PATIENCE for job in current.running):
            self._help()
        wait = min(_STOP_POLL, current.deadline - clock)
        if current.pending:
            wait = min(wait, PATIENCE)
        for job in current.running:
            wait = min(wait, job.started + job.timeout - clock)
        self._finished.wait(max(wait, 0))
        return True

    def _add(self, current: _Progress, job: _Job) -> None:
        hanging = self._hanging.get(job.id)
        if hanging is None:
            current.pending.append(job)
        else:
            seconds = self._clock() - hanging.started
            current.done[job.id] = Failure(f"still hanging after {round_down(seconds)} s")

    def _give_up(self, job: _Job) -> None:
        job.given_up = True
        self._hanging[job.id] = job

    def _finish(self, current: _Progress, job: _Job, result: _Result, spent: float) -> None:
        current.done[job.id] = result
        current.durations[job.id.check] = current.durations.get(job.id.check, 0.0) + spent

    def _may_start(self, job: _Job, stuck: int) -> bool:
        return stuck < MAX_HANGING or job.id in self._answered

    def _help(self) -> None:
        if self._idle:
            self._work.notify()
        elif self._threads < MAX_THREADS:
            self._threads += 1
            threading.Thread(target=self._worker, name="check", daemon=True).start()

    def _worker(self) -> None:
        with self._lock:
            while True:
                job = self._take()
                if job is None:
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                    continue
                current = self._round
                assert current is not None, "a job is taken from a round only"
                now = current.now + (job.started - current.started)
                self._lock.release()
                try:
                    result = _run(job, now)
                finally:
                    self._lock.acquire()
                if job.given_up:
                    # Others took over when it was given up.
                    del self._hanging[job.id]
                    self._threads -= 1
                    return
                current.running.remove(job)
                current.answered.add(job.id)
                self._finish(current, job, result, self._clock() - job.started)
                if isinstance(result, _Instances):
                    for instance in result.names:
                        self._add(current, _instance_job(self._checks[job.id.check], instance))
                if not current.pending and not current.running:
                    self._finished.notify()

    def _take(self) -> _Job | None:
        if self._round is None:
            return None
        clock = self._clock()
        stuck = len(self._hanging) + sum(clock >= job.started + PATIENCE for job in self._round.running)
        for index, job in enumerate(self._round.pending):
            if self._may_start(job, stuck):
                del self._round.pending[index]
                job.started = clock
                self._round.running.append(job)
                return job
        return None


def round_down(seconds: float) -> int:
    """To 1, 2 or 5 times a power of ten.

    A message that counted on would be a change in every report, and changes are what gets written.
    """
    if seconds < 1:
        return 0
    power: int = 10 ** (len(str(int(seconds))) - 1)
    return max(step * power for step in (1, 2, 5) if step * power <= seconds)


def _first_job(configured: ConfiguredCheck) -> _Job:
    check = configured.check
    if isinstance(check, InstanceCheck):
        found = check.discover
        return _Job(
            JobId(configured.name), lambda _: _Instances(tuple(dict.fromkeys(found()))), configured.timeout
        )
    if isinstance(check, TableCheck):
        table = check.measure_all
        return _Job(JobId(configured.name), lambda now: _Table(table(now)), configured.timeout)
    single = check.measure
    return _Job(JobId(configured.name), lambda now: _Table({"": single(now)}), configured.timeout)


def _instance_job(configured: ConfiguredCheck, instance: str) -> _Job:
    check = configured.check
    assert isinstance(check, InstanceCheck), "only these list their instances"
    return _Job(
        JobId(configured.name, instance), lambda now: check.measure(instance, now), configured.timeout
    )


def _run(job: _Job, now: float) -> _Result:
    try:
        return job.call(now)
    except NoData:
        return None
    except BaseException as error:  # noqa: BLE001 - whatever a check does, even exit(), the rest goes on
        return Failure(str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")


def _outcome(name: str, done: Mapping[JobId, _Result]) -> CheckOutcome:
    first = done[JobId(name)]
    if isinstance(first, Failure):
        return CheckOutcome(name, first)
    if isinstance(first, _Table):
        return CheckOutcome(name, first.readings)
    readings: dict[str, Reading | Failure] = {}
    if isinstance(first, _Instances):
        for instance in first.names:
            reading = done[JobId(name, instance)]
            if reading is not None:
                assert not isinstance(reading, _Instances | _Table), "an instance has one reading"
                readings[instance] = reading
    return CheckOutcome(name, readings)
