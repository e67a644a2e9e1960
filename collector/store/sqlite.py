"""The embedded store: SQLite in WAL mode, one file, one writer at a time, readers beside it."""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from collector.store.dialect import CheckRow, Dialect, EventRow, LatestRow, SeenRow
from collector.store.errors import (
    SchemaMismatch,
    StoreConflict,
    StoreError,
    StoreLocked,
    StoreMisconfigured,
    StoreReadOnly,
    StoreRefused,
    StoreUnavailable,
)
from collector.store.url import SqliteUrl

_BUSY_TIMEOUT = 5.0  # seconds to wait for another writer

_WRONG_TYPE = 3091  # SQLITE_CONSTRAINT_DATATYPE, which Python has no name for

# https://www.sqlite.org/rescode.html, primary codes
_ERRORS: dict[int, type[StoreError]] = {
    sqlite3.SQLITE_BUSY: StoreLocked,
    sqlite3.SQLITE_LOCKED: StoreLocked,
    sqlite3.SQLITE_CONSTRAINT: StoreConflict,
    sqlite3.SQLITE_TOOBIG: StoreRefused,
    sqlite3.SQLITE_MISMATCH: StoreRefused,
    sqlite3.SQLITE_READONLY: StoreReadOnly,
    sqlite3.SQLITE_FULL: StoreReadOnly,
    sqlite3.SQLITE_IOERR: StoreUnavailable,
    sqlite3.SQLITE_CANTOPEN: StoreUnavailable,
    sqlite3.SQLITE_PERM: StoreMisconfigured,
    sqlite3.SQLITE_AUTH: StoreMisconfigured,
    sqlite3.SQLITE_NOTADB: StoreMisconfigured,
    sqlite3.SQLITE_CORRUPT: StoreMisconfigured,
}


def _upsert_rows(table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in keys)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "  # noqa: S608 - names of ours
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {updates}"
    )


_UPDATE_SEEN = (
    "UPDATE host_seen SET version = version + 1, epoch = ?, seq = ?, received_at = ?, measured_at = ?, "
    "silence = ? WHERE host = ? AND version = ?"
)
_UPDATE_LATEST = _upsert_rows("host_latest", LatestRow._fields, ["host"])
_UPSERT_CHECKS = _upsert_rows("check_state", CheckRow._fields, ["host", "name", "instance"])
_INSERT_EVENTS = (
    f"INSERT INTO event ({', '.join(EventRow._fields)}) "  # noqa: S608 - names of ours
    f"VALUES ({', '.join('?' * len(EventRow._fields))})"
)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL mode. SQLite does not wait for others here as it does everywhere else."""
    deadline = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


class SqliteDialect(Dialect):
    """See `Dialect`."""

    name = "sqlite"
    driver_error = sqlite3.Error
    insert_ignore = "INSERT OR IGNORE"
    for_update = ""  # BEGIN IMMEDIATE locks everything
    single_writer = True
    clock_expression = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"

    def __init__(self, url: SqliteUrl):
        self._path = url.path

    def connect(self) -> Any:
        self._make_file()
        # Not shared between threads at one time: the pool sees to that.
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")  # what is acked must survive a power loss
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_file(self) -> None:
        """For its owner alone, as then are the files beside it; SQLite would let everybody read.

        Whatever is in the way is SQLite's to tell.
        """
        with suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def connection_number(self, connection: Any) -> int | None:  # noqa: ARG002 - there is no server
        return None

    def survivors(self, connection: Any, ages: Mapping[int, float]) -> set[int]:  # noqa: ARG002 - as above
        return set()

    def begin(self, connection: Any, *, write: bool) -> None:
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def is_lost(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.ProgrammingError)

    def to_store_error(self, error: Exception, elapsed: float) -> StoreError:  # noqa: ARG002 - the error says all
        text = f"database {self._path}: {error}"
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if "no such table" in str(error) or "no such column" in str(error):
            return SchemaMismatch(f"{text}; run: collector-cli db upgrade")
        if getattr(error, "sqlite_errorcode", 0) == _WRONG_TYPE:
            return StoreRefused(text)
        return _ERRORS.get(code, StoreError)(text)

    @functools.cache  # noqa: B019 - one dialect lives as long as the process
    def sql(self, statement: str) -> str:
        return statement.replace("%s", "?")

    def update_seen(self, cursor: Any, rows: Sequence[SeenRow]) -> int:
        cursor.executemany(_UPDATE_SEEN, [(*row[2:], row.host, row.version) for row in rows])
        updated: int = cursor.rowcount
        return updated

    def update_latest(self, cursor: Any, rows: Sequence[LatestRow]) -> None:
        cursor.executemany(_UPDATE_LATEST, rows)

    def upsert_checks(self, cursor: Any, rows: Sequence[CheckRow]) -> None:
        cursor.executemany(_UPSERT_CHECKS, rows)

    def insert_events(self, cursor: Any, rows: Sequence[EventRow]) -> None:
        cursor.executemany(_INSERT_EVENTS, rows)

    @functools.cache  # noqa: B019 - one dialect lives as long as the process
    def upsert(self, table: str, keys: tuple[str, ...], columns: tuple[str, ...]) -> str:
        return _upsert_rows(table, (*keys, *columns), keys).replace("?", "%s")

    def connection_budget(self, cursor: Any) -> int | None:  # noqa: ARG002 - there is no server
        return None
