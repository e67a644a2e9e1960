"""A soak from its beginning to its verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.spool import DiskSpool
from tests import faults
from tests.soak.ledger import Change, behind_acks, compare_changes, expected_changes
from tests.soak.memory import Memory
from tests.soak.schedule import Fault, Planned, schedule
from tests.soak.world import POOL_SIZE, Hive, World

_RECOVERY_LIMIT = 180.0  # seconds after which a fault's end was not recovered from
_DRAIN_LIMIT = 180.0
_LOOK_EVERY = 2.0
_CROWDS = (faults.ExhaustConnections, faults.Pause)


@dataclass
class Verdict:
    """What came out. `problems` is empty if everything agreed."""

    seconds: float = 0.0
    hosts: int = 0
    reports: int = 0
    transitions: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, float] = field(default_factory=dict)
    """The longest time in seconds, by fault, from its end until every host has a report committed that it made after that."""
    deaths: int = 0
    renewals: int = 0
    """Certificates that hosts got over their streams."""
    ca_changes: int = 0
    lost: int = 0
    duplicated: int = 0
    most_connections: int = 0
    most_threads: int = 0
    peak: dict[str, float] = field(default_factory=dict)
    """MB resident, by kind of process."""
    slope: dict[str, float | None] = field(default_factory=dict)
    """MB per hour."""
    problems: list[str] = field(default_factory=list)


class Soak:
    """One run over a `world`; `say` hears what happens."""

    def __init__(self, world: World, *, settling: float, say: Callable[[str], None]):
        self.world = world
        self.verdict = Verdict(hosts=world.size.hosts + world.size.programs)
        self._say = say
        self._began = time.monotonic()
        self._memory = {kind: Memory(settling) for kind in ("collector", "simulated agents", "agent")}
        self._looked_at = 0.0
        self._dead: set[int] = set()
        self._rotated_at = 0.0  # seconds since the beginning; 0: the CA is not being changed

    def run(self, seconds: float, seed: int, longest: float, deaths: int) -> Verdict:
        """Faults for so many seconds, `deaths` of them long enough to be silence; then compare.

        The CA is changed after a third of the time, while everything else goes on.
        """
        self._wait_until_all_are_known()
        end = time.monotonic() + seconds
        deaths_at = [seconds * (number + 1) / (deaths + 1) for number in range(deaths)]
        for planned in schedule(self.world, seed, longest):
            if time.monotonic() + planned.peace + planned.duration > end:
                break
            self._change_ca(seconds / 3)
            if deaths_at and self._elapsed > deaths_at[0]:
                deaths_at.pop(0)
                self._kill_for_long(self.world.hives[seed % len(self.world.hives)])
                end = max(end, time.monotonic() + 1)
            self._watch(planned.peace)
            self._go_through(planned)
        for _ in deaths_at:
            self._kill_for_long(self.world.hives[seed % len(self.world.hives)])
        self._watch(end - time.monotonic())  # the next fault would not have been over in time
        self._wait(lambda: self._change_ca(0), _RECOVERY_LIMIT, "the change of the CA to be over")
        self.verdict.seconds = self._elapsed
        self._finish()
        return self.verdict

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _wait_until_all_are_known(self) -> None:
        wanted = self.world.size.hosts + self.world.size.programs

        def known() -> bool:
            rows = self.world.query("SELECT COUNT(*) FROM host_seen WHERE received_at > 0")
            return rows is not None and int(str(rows[0][0])) == wanted

        self._wait(known, 120, "every host to be known")
        self.world.most_connections()  # from here on it counts
        self._say(f"{wanted} hosts report")

    def _change_ca(self, not_before: float) -> bool:
        """Begin or end the change of the CA if it is time; whether it is over."""
        if self.verdict.ca_changes or self._elapsed < not_before:
            return bool(self.verdict.ca_changes)
        if not self._rotated_at:
            self.world.rotate_ca()
            self._rotated_at = self._elapsed
            self._say("the CA is being changed")
        elif self.world.finish_ca():
            self.verdict.ca_changes += 1
            self._say(f"the CA was changed within {self._elapsed - self._rotated_at:.1f} s")
        return bool(self.verdict.ca_changes)

    def _go_through(self, planned: Planned) -> None:
        # Not the collector's alone then: a crowd's, or our own questions that wait for a server that stands
        # still. That the collector wants no more than its pool, its account's limit shows all the time.
        crowded = any(isinstance(fault, _CROWDS) for fault in planned.faults)
        self._note_connections()
        for fault in planned.faults:
            self.verdict.faults[fault.name] = self.verdict.faults.get(fault.name, 0) + 1
            fault.begin()
        self._watch(planned.duration)
        for fault in _ends_first(planned.faults):
            fault.end()
        took = self._recover()
        for fault in planned.faults:
            self.verdict.recovery[fault.name] = max(took, self.verdict.recovery.get(fault.name, 0.0))
        if crowded:
            self._wait(self.world.is_alone, 30, "the crowd to be gone")
            self.world.most_connections()  # counted the others, too
        self._say(f"{planned.name}: {planned.duration:.1f} s, recovered in {took:.1f} s")

    def _recover(self) -> float:
        """Seconds until every host has said something new and it is committed, and all from before with it."""
        self.world.read_ledgers()
        marks_now = {number: host.mark for number, host in self.world.ledger.hosts.items()}
        began = time.monotonic()

        def recovered() -> bool:
            marks = self._look()
            return marks is not None and all(
                self.world.ledger.hosts[number].has_passed(marks.get(number, (0, 0)), mark)
                for number, mark in marks_now.items()
                if number not in self._dead
            )

        self._wait(recovered, _RECOVERY_LIMIT, "recovery")
        return time.monotonic() - began

    def _kill_for_long(self, hive: Hive) -> None:
        """Dead for longer than the time-to-live: one event when silent, one when back."""
        self._watch(2.0)
        self._note_connections()
        hive.kill()
        self._dead.update(hive.hosts)

        def announced() -> bool:
            self._look()
            rows = self.world.query(
                "SELECT COUNT(*) FROM event WHERE kind = 'silent' AND hostname LIKE 'soak-%%'"
            )
            return rows is not None and int(str(rows[0][0])) >= sum(self.world.deaths.values()) + len(
                hive.hosts
            )

        began = time.monotonic()
        self._wait(announced, self.world.size.ttl + 90, "silence to be announced")
        for number in hive.hosts:
            self.world.deaths[number] = self.world.deaths.get(number, 0) + 1
        self.verdict.deaths += 1
        self._say(f"{len(hive.hosts)} hosts dead: announced after {time.monotonic() - began:.1f} s")
        hive.start()
        self._dead.difference_update(hive.hosts)
        self._recover()

    def _finish(self) -> None:
        """Stop measuring, deliver all, and compare the ledger with the database."""
        self._say("draining")
        for hive in self.world.hives:
            hive.tell("drain")
        for hive in self.world.hives:
            code = hive.wait(_DRAIN_LIMIT)
            if code:
                self._problem(f"the agents of hosts {hive.hosts} ended with {code}")
        self._note_connections()
        self._compare_programs()
        self.world.read_ledgers()
        self._compare_marks()
        self._compare_events()
        verdict = self.verdict
        verdict.reports = sum(len(host.made) for host in self.world.ledger.hosts.values())
        for kind, memory in self._memory.items():
            verdict.peak[kind] = memory.peak
            verdict.slope[kind] = memory.slope
        verdict.renewals = self.world.renewals()
        verdict.most_threads = self._memory["collector"].most_threads
        if refused := self.world.refused_connections():
            self._problem(f"the server refused {refused} connections beyond the pool's {POOL_SIZE}")
        if verdict.most_connections > POOL_SIZE:
            self._problem(f"{verdict.most_connections} connections, more than the pool's {POOL_SIZE}")

    def _compare_marks(self) -> None:
        marks = self.world.marks()
        assert marks is not None
        for number, host in self.world.ledger.hosts.items():
            if marks.get(number) != host.mark:
                self.verdict.lost += 1
                self._problem(f"host {number}: said up to {host.mark}, stored is {marks.get(number)}")
            if host.acked.get(host.mark[0]) != host.mark[1]:
                self._problem(f"host {number}: said up to {host.mark}, acked is {host.acked}")

    def _compare_events(self) -> None:
        stored = self.world.stored_changes()
        for number, host in self.world.ledger.hosts.items():
            expected = expected_changes(host.made)
            self.verdict.transitions += sum(change.kind == "state" for change in expected)
            for kind in ("silent", "back"):
                expected += [Change(kind)] * self.world.deaths.get(number, 0)
            found = compare_changes(number, expected, stored[number])
            self.verdict.lost += len(found.lost)
            self.verdict.duplicated += len(found.duplicated)
            for problem in (*found.lost, *found.duplicated):
                self._problem(problem)
        # Strangers are among the attackers, and each that is refused is to be told.
        rows = self.world.query(
            "SELECT kind, new_value FROM event WHERE host IS NULL AND kind <> 'enrolment-refused'"
        )
        for row in rows or ():
            self._problem(f"an event about the fleet: {row}")

    def _compare_programs(self) -> None:
        """The real agents: what their spools say that they sent is what the database has."""
        for number, program in enumerate(self.world.programs):
            program.stop()
            folder = self.world.folder / f"agent-{number}"
            identity = (folder / "host_id").read_text().strip()
            spool = DiskSpool(folder / "spool.db")
            newest, waiting, epoch = spool.last_seq, spool.pending(), spool.epoch
            spool.close()
            rows = self.world.query(
                "SELECT s.epoch, s.seq FROM host h JOIN host_seen s ON s.host = h.id WHERE h.host_id = %s",
                identity,
            )
            assert rows
            # A report may be committed and its ack cut off by the end.
            if rows[0][0] != epoch or not newest - waiting <= int(str(rows[0][1])) <= newest:
                self._problem(
                    f"agent {number}: {newest} made, {waiting} wait, epoch {epoch}; stored {rows[0]}"
                )
            odd = self.world.query(
                "SELECT e.kind FROM event e JOIN host h ON h.id = e.host WHERE h.host_id = %s"
                " AND e.kind IN ('silent', 'back', 'dropped', 'new-epoch', 'check-removed')",
                identity,
            )
            if odd:
                self._problem(f"agent {number}: unexpected events {odd}")

    def _watch(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._look()
            time.sleep(min(0.5, max(0.0, left)))

    def _look(self) -> dict[int, tuple[int, int]] | None:
        """Compare what was acked with what is committed, now; the stored marks."""
        self.world.read_ledgers()
        marks = self.world.marks()
        if marks is not None:
            for problem in behind_acks(self.world.ledger, marks):
                self._problem(problem)
        if time.monotonic() - self._looked_at > _LOOK_EVERY:
            self._looked_at = time.monotonic()
            self._take_samples()
        return marks

    def _take_samples(self) -> None:
        world = self.world
        self._memory["collector"].note(world.collector.pid, self._elapsed)
        for hive in world.hives:
            if hive.is_running:
                self._memory["simulated agents"].note(hive.pid, self._elapsed)
        for program in world.programs:
            self._memory["agent"].note(program.pid, self._elapsed)
        self.verdict.most_connections = max(self.verdict.most_connections, world.connections())

    def _note_connections(self) -> None:
        self.verdict.most_connections = max(self.verdict.most_connections, self.world.most_connections())

    def _wait(self, condition: Callable[[], object], limit: float, what: str) -> None:
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not within {limit:.0f} s: {what}")
            time.sleep(0.1)

    def _problem(self, text: str) -> None:
        if text not in self.verdict.problems:
            self.verdict.problems.append(text)
            self._say(f"PROBLEM {text}")


def _ends_first(chosen: Iterable[Fault]) -> list[Fault]:
    """A collector is started when its database is well again."""
    return sorted(chosen, key=lambda fault: not isinstance(fault, faults.Fault))
