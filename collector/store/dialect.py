"""What differs between the databases, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from collector.store.errors import StoreError


class SeenRow(NamedTuple):
    """A host's new row in host_seen; takes effect only where `version` is still the stored one."""

    host: int
    version: int
    epoch: int
    seq: int
    received_at: int
    measured_at: int
    silence: int


class LatestRow(NamedTuple):
    """A host's latest report: `series` are little-endian doubles, `results` JSON or None."""

    host: int
    layout: int
    series: bytes
    results: bytes | None


class CheckRow(NamedTuple):
    """A check's status as it is stored."""

    host: int
    name: str
    instance: str
    state: int
    since: int
    message: str
    pending: int
    pending_count: int
    occurrences: int


class EventRow(NamedTuple):
    """An event as it is stored; `host` is None for events about the fleet."""

    at: int
    host: int | None
    hostname: str
    kind: str
    subject: str
    instance: str
    old_value: str
    new_value: str
    message: str
    measured_at: int


class Dialect(ABC):
    """One kind of database: how to connect, what its errors mean, and its own bulk statements.

    `cursor` is always the driver's. Statements elsewhere are written with %s and pass `sql`.
    """

    name: str
    driver_error: type[Exception]
    insert_ignore: str
    for_update: str
    single_writer: bool
    """True where only one transaction can write at a time."""
    clock_expression: str
    """SQL for the database's clock in milliseconds since the Unix epoch."""

    @abstractmethod
    def connect(self) -> Any:
        """A new connection of the driver, its session prepared."""

    @abstractmethod
    def connection_number(self, connection: Any) -> int | None:
        """The number that the server gave a connection; None where there is no server."""

    @abstractmethod
    def survivors(self, connection: Any, ages: Mapping[int, float]) -> set[int]:
        """Which of our own connections the server still has; by number, seconds since each was made."""

    @abstractmethod
    def begin(self, connection: Any, *, write: bool) -> None:
        """Start a transaction."""

    @abstractmethod
    def is_lost(self, error: Exception) -> bool:
        """Whether the connection cannot be used any more after this error."""

    @abstractmethod
    def to_store_error(self, error: Exception, elapsed: float) -> StoreError:
        """What a driver's error means to us, in a transaction that began so many seconds ago."""

    @abstractmethod
    def sql(self, statement: str) -> str:
        """A statement with the driver's own placeholders."""

    @abstractmethod
    def update_seen(self, cursor: Any, rows: Sequence[SeenRow]) -> int:
        """Write the rows whose version is still the stored one; how many those were."""

    @abstractmethod
    def update_latest(self, cursor: Any, rows: Sequence[LatestRow]) -> None:
        """Overwrite the hosts' latest reports."""

    @abstractmethod
    def upsert_checks(self, cursor: Any, rows: Sequence[CheckRow]) -> None:
        """Insert or overwrite check statuses."""

    @abstractmethod
    def upsert(self, table: str, keys: tuple[str, ...], columns: tuple[str, ...]) -> str:
        """A statement (with %s) that inserts one row or overwrites its columns that are not keys."""

    @abstractmethod
    def insert_events(self, cursor: Any, rows: Sequence[EventRow]) -> None:
        """Append events."""

    @abstractmethod
    def connection_budget(self, cursor: Any) -> int | None:
        """How many connections the server accepts from all clients; None: no such limit."""
