"""The domain: what a host says about itself. Pure values, no wire types, no I/O, no clock."""

from __future__ import annotations

import enum
import hashlib
import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, NewType

HostId = NewType("HostId", str)
"""A host's UUID in canonical text form; never its hostname."""

LayoutId = NewType("LayoutId", bytes)
"""BLAKE2b-128 of a layout's content, 16 bytes."""


class State(enum.IntEnum):
    """The monitoring-plugins codes (https://www.monitoring-plugins.org/doc/guidelines.html)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3

    @property
    def severity(self) -> int:
        """Rank for "worst of": UNKNOWN lies between WARNING and CRITICAL."""
        return _SEVERITY[self]


_SEVERITY = {State.OK: 0, State.WARNING: 1, State.UNKNOWN: 2, State.CRITICAL: 3}


class CheckKey(NamedTuple):
    """One thing looked at on a host, such as ("filesystem", "/home")."""

    name: str
    instance: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.instance}" if self.instance else self.name


class Measurement(NamedTuple):
    """What one series measures.

    `name` is an OpenTelemetry semantic-convention name with its attributes in braces, `unit` is
    UCUM. Counters travel as rates: the counter's name with a unit that ends in "/s".
    """

    name: str
    unit: str


class CheckLayout(NamedTuple):
    """One check and the series that it contributes to a report, in order."""

    key: CheckKey
    measurements: tuple[Measurement, ...]


_OBJECT_SIZE = 1_000  # bytes of a layout without its content, with its place in the tables that know it
_CHECK_SIZE = 200  # bytes of a check's tuples
_SERIES_SIZE = 150  # bytes of a series' tuples, here and in `Layout.series`


@dataclass(frozen=True)
class Layout:
    """The ordered list of a host's series. Equal content has an equal id on every host."""

    checks: tuple[CheckLayout, ...]

    @property
    def canonical_json(self) -> str:
        """[[check, instance, [[measurement, unit], ...]], ...] without white space. Made anew each time."""
        content = [[c.key.name, c.key.instance, c.measurements] for c in self.checks]
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Layout:
        """The reverse of `canonical_json`; for text that it made."""
        return cls(
            tuple(
                CheckLayout(CheckKey(name, instance), tuple(Measurement(*m) for m in measurements))
                for name, instance, measurements in json.loads(text)
            )
        )

    @cached_property
    def id(self) -> LayoutId:
        """The content's hash, as proto/fleetpulse/v1/ingest.proto defines it."""
        return LayoutId(hashlib.blake2b(self.canonical_json.encode(), digest_size=16).digest())

    @cached_property
    def size(self) -> int:
        """About how many bytes of memory it takes up. A text with one rare character takes four for each."""
        size = _OBJECT_SIZE
        for key, measurements in self.checks:
            size += _CHECK_SIZE + sys.getsizeof(key.name) + sys.getsizeof(key.instance)
            for name, unit in measurements:
                size += _SERIES_SIZE + sys.getsizeof(name) + sys.getsizeof(unit)
        return size

    @cached_property
    def series_count(self) -> int:
        """How many values a report of this layout holds."""
        return sum(len(check.measurements) for check in self.checks)

    @cached_property
    def series(self) -> tuple[tuple[CheckKey, Measurement], ...]:
        """Every series in the order of a report's values."""
        return tuple((check.key, m) for check in self.checks for m in check.measurements)


class CheckResult(NamedTuple):
    """A check's own word about itself: plugins and failures have one.

    `check` is the index into the checks of the report's layout.
    """

    check: int
    state: State
    message: str


class Report(NamedTuple):
    """Everything one host says at one moment.

    `seq` counts up by one inside the host's epoch. `measured_at` is the agent's clock in
    milliseconds since the Unix epoch. `values` follows `layout.series`, NaN where a value is
    missing; off the wire they are an array of doubles, a quarter of the memory of a tuple of objects.
    `dropped` counts the reports that a full spool lost just before this one.
    """

    seq: int
    measured_at: int
    layout: Layout
    values: Sequence[float]
    results: tuple[CheckResult, ...] = ()
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks: what stays the same for the life of a stream. Durations in milliseconds.

    `instance` is new with each start of the agent, `hardware_id` a hash of what tells this hardware from
    a copy of its disk, `trust_id` the SHA-256 of the CA bundle that the agent trusts. Each may be empty.
    """

    host_id: HostId
    hostname: str
    machine_id: str
    boot_id: str
    epoch: int
    agent_version: str
    interval: int
    ttl: int
    groups: tuple[str, ...] = ()
    instance: str = ""
    hardware_id: str = ""
    trust_id: bytes = b""


Facts = Mapping[str, str]
"""Slow inventory under OpenTelemetry resource names, such as {"host.cpu.model.name": "..."}."""


def parse_host_id(text: str) -> HostId:
    """The canonical form of a UUID.

    Raises ValueError if `text` is not one in its usual form of 36 characters.
    """
    if len(text) != 36:
        raise ValueError(f"not a UUID: {text[:64]!r}")
    return HostId(str(uuid.UUID(text)))


def is_host_id(text: str) -> bool:
    """Whether `text` is a UUID in its usual form, in capitals or not."""
    try:
        parse_host_id(text)
    except ValueError:
        return False
    return True
