"""The faults of a soak, and which comes when: random, and the same for the same seed."""

from __future__ import annotations

import itertools
import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol

from bench.attackers import ATTACKS, TLS_ATTACKS
from tests import faults
from tests.soak.world import Hive, World


class Fault(Protocol):
    """What `tests.faults` has for databases, for anything."""

    name: ClassVar[str]

    def begin(self) -> None: ...

    def end(self) -> None: ...


class _Choice(ABC):
    """A fault of the world's own; `draw` decides whom it hits."""

    name: ClassVar[str]

    def __init__(self, world: World, draw: random.Random):
        self.world = world
        self.draw = draw

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...


class CollectorKilled(_Choice):
    """kill -9, and started again by whoever looks after services."""

    name = "collector killed"

    def begin(self) -> None:
        self.world.collector.kill()

    def end(self) -> None:
        self.world.start_collector()


class CollectorRestarted(CollectorKilled):
    """Stopped in order: Goodbye, drain, commit, ack."""

    name = "collector restarted"

    def begin(self) -> None:
        assert self.world.collector.stop() == 0


class CollectorFrozen(_Choice):
    name = "collector frozen"

    def begin(self) -> None:
        self.world.collector.signal(signal.SIGSTOP)

    def end(self) -> None:
        self.world.collector.signal(signal.SIGCONT)


class _SomeHives(_Choice):
    """Hits between one and half of the hives."""

    def begin(self) -> None:
        hives = self.world.hives
        self.chosen = self.draw.sample(hives, self.draw.randint(1, len(hives) // 2))
        for hive in self.chosen:
            self.begin_one(hive)

    def end(self) -> None:
        for hive in self.chosen:
            self.end_one(hive)

    @abstractmethod
    def begin_one(self, hive: Hive) -> None: ...

    @abstractmethod
    def end_one(self, hive: Hive) -> None: ...


class AgentsKilled(_SomeHives):
    """kill -9 of many simulated agents, and of one real one."""

    name = "agents killed"

    def begin(self) -> None:
        super().begin()
        self._program = self.draw.randrange(len(self.world.programs))
        self.world.programs[self._program].kill()

    def begin_one(self, hive: Hive) -> None:
        hive.kill()

    def end_one(self, hive: Hive) -> None:
        hive.start()

    def end(self) -> None:
        super().end()
        self.world.programs[self._program] = self.world.start_program(self._program)


class AgentsFrozen(_SomeHives):
    name = "agents frozen"

    def begin_one(self, hive: Hive) -> None:
        hive.signal(signal.SIGSTOP)

    def end_one(self, hive: Hive) -> None:
        hive.signal(signal.SIGCONT)


class ClockJump(_SomeHives):
    """The wall clocks of many hosts jump by up to a day, and back."""

    name = "agents' clocks jump"

    def begin_one(self, hive: Hive) -> None:
        hive.tell(f"clock {self.draw.randint(-86_400_000, 86_400_000)}")

    def end_one(self, hive: Hive) -> None:
        hive.tell("clock 0")


class SpoolsBroken(_SomeHives):
    """Some hosts' disks lose their spools."""

    name = "spools corrupt"

    def begin_one(self, hive: Hive) -> None:
        for number in self.draw.sample(hive.hosts, 2):
            hive.tell(f"corrupt {number}")

    def end_one(self, hive: Hive) -> None:
        pass


class NetworkCut(_SomeHives):
    """Nothing passes, and nobody is told."""

    name = "network cut"

    def begin_one(self, hive: Hive) -> None:
        hive.relay.cut()

    def end_one(self, hive: Hive) -> None:
        hive.relay.heal()


class NetworkReset(_SomeHives):
    """Connections break, again and again."""

    name = "connections reset"

    def begin_one(self, hive: Hive) -> None:
        hive.relay.reset()

    def end_one(self, hive: Hive) -> None:
        hive.relay.reset()


class HalfOpen(_SomeHives):
    """The collector's ends of the connections close, and the agents are not told."""

    name = "half-open"

    def begin_one(self, hive: Hive) -> None:
        hive.relay.abandon()

    def end_one(self, hive: Hive) -> None:
        pass


class Attack(_Choice):
    """Somebody behaves as badly as possible, beside everybody else."""

    name = "attack"

    def begin(self) -> None:
        name = self.draw.choice(sorted({**ATTACKS, **TLS_ATTACKS}))
        self._attacker = self.world.start_attack(name)

    def end(self) -> None:
        self._attacker.kill()


_OWN: tuple[tuple[type[_Choice], ...], ...] = (
    (CollectorKilled, CollectorRestarted, CollectorFrozen),
    (AgentsKilled, AgentsFrozen, ClockJump, SpoolsBroken),
    (NetworkCut, NetworkReset, HalfOpen),
    (Attack,),
)
_ROUNDS_OF_A_COLLECTOR = 3
_AT_ONCE = 0.3  # share of the faults that come in pairs


class Planned(NamedTuple):
    """What goes wrong at once, for how long, and how long there is peace before it. Seconds."""

    faults: tuple[Fault, ...]
    duration: float
    peace: float

    @property
    def name(self) -> str:
        return " + ".join(fault.name for fault in self.faults)


def schedule(world: World, seed: int, longest: float) -> Iterator[Planned]:
    """Without end: every kind once in random order, then once more in another, with pairs in between.

    `longest` bounds the duration of a fault in seconds. A collector dies in every third round only: in
    between it gets old enough to tell whether its memory grows.
    """
    draw = random.Random(seed)
    database = list(faults.EVERYWHERE) + ([faults.DiskFull] if world.has_own_disk else [])

    def make(kind: type[_Choice] | type[faults.Fault]) -> Fault:
        if issubclass(kind, _Choice):
            return kind(world, draw)
        return kind(world.server, world.database)

    for number in itertools.count():
        own = _OWN if number % _ROUNDS_OF_A_COLLECTOR == 0 else ((CollectorFrozen,), *_OWN[1:])
        groups = [*own, tuple(database)]
        order = [(kind, group) for group in groups for kind in group]
        draw.shuffle(order)
        for kind, group in order:
            chosen = [make(kind)]
            if draw.random() < _AT_ONCE:
                other = draw.choice([other for other in groups if other is not group])
                chosen.append(make(draw.choice(other)))
            yield Planned(tuple(chosen), draw.uniform(0.3, 1.0) * longest, draw.uniform(0.5, 3.0))
