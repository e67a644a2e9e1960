"""What the collector knows of a host, and the changes between two moments.

All times are milliseconds since the Unix epoch by the collector's clock unless a name says otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from fleetpulse.model import CheckKey, State


class Silence(enum.IntEnum):
    """Whether, and how, a host's silence has been announced."""

    NONE = 0
    ALONE = 1
    """By an event of its own."""
    FLEET = 2
    """By one event about the fleet, together with many others."""


class CheckStatus(NamedTuple):
    """The confirmed state of a check, and the one that is waiting to be confirmed.

    `since` is when `state` began; `message` is the check's own, or that of the threshold it crossed.
    `pending` was seen `pending_count` times in a row (0: no other state waits). `occurrences` is how
    often OK has to be seen in a row to end the state, as the rule that raised it says.
    """

    state: State
    since: int
    message: str = ""
    pending: State = State.OK
    pending_count: int = 0
    occurrences: int = 1

    @property
    def is_calm(self) -> bool:
        """OK, silent and nothing waiting: a report without a breach cannot change it."""
        return self.state is State.OK and not self.message and not self.pending_count


class HostStatus(NamedTuple):
    """What is stored of a host that matters for comparing its next report.

    `(epoch, seq)` is the high-water mark: the last report that took effect. `epoch` is that of the
    host's last Hello (0 before the first), `seq` is 0 until a report of it has taken effect.
    `measured_at` is that report's time by the agent's clock.
    `layout_id` is the layout of that report, empty before the first. `is_calm` says that every
    check is calm.
    """

    epoch: int = 0
    seq: int = 0
    received_at: int = 0
    measured_at: int = 0
    silence: Silence = Silence.NONE
    layout_id: bytes = b""
    checks: Mapping[CheckKey, CheckStatus] = MappingProxyType({})
    is_calm: bool = True


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host's identity as its last Hello gave it. Durations in milliseconds.

    `hostname` is the machine's own; what the record is called may be something else. `instance` is new
    with each start of the agent. `collector` is the name of the one that took the Hello.
    """

    host_id: str
    hostname: str
    machine_id: str
    boot_id: str
    agent_version: str
    address: str
    interval: int
    ttl: int
    groups: tuple[str, ...] = ()
    hardware_id: str = ""
    instance: str = ""
    collector: str = ""


class EventKind(enum.StrEnum):
    """Every kind of change that is written down."""

    ADDED = "added"
    REMOVED = "removed"
    STATE = "state"
    CHECK_APPEARED = "check-appeared"
    CHECK_REMOVED = "check-removed"
    FACT = "fact"
    REBOOT = "reboot"
    NEW_EPOCH = "new-epoch"
    DROPPED = "dropped"
    SILENT = "silent"
    BACK = "back"
    FLEET_SILENT = "fleet-silent"
    FLEET_BACK = "fleet-back"
    ENROLLED = "enrolled"
    ENROLMENT_REFUSED = "enrolment-refused"
    RENEWED = "renewed"
    REVOKED = "revoked"
    CONFLICT = "conflict"
    CONFLICT_OVER = "conflict-over"
    RENAMED = "renamed"
    REBOUND = "rebound"
    DIAGNOSED = "diagnosed"
    HOST_KEY_CHANGED = "host-key-changed"


class Event(NamedTuple):
    """One change. `subject` is the check or the fact, `measured_at` the agent's clock (0: none)."""

    at: int
    kind: EventKind
    subject: str = ""
    instance: str = ""
    old: str = ""
    new: str = ""
    message: str = ""
    measured_at: int = 0
