"""The SQLite file under the spool: open and check it, set a corrupt one aside, give space back."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_VERSION = 2
# The newest report stays in its table, acked or not, as the memory of numbers, of the clock and of the
# layout. So a report costs one page: AUTOINCREMENT would be a second one. `last_seq` counts only where
# the newest report was taken out. `contacted_seq` is the newest report that a collector may have been
# sent, while there are reports of agents that have reached none; else NULL, and any may have been sent.
_REPORT = """
    CREATE TABLE report (
        seq INTEGER PRIMARY KEY,
        kept_at INTEGER NOT NULL,
        layout_id BLOB NOT NULL,
        payload BLOB NOT NULL,
        dropped INTEGER NOT NULL
    );
"""
_SCHEMA = f"""
    {_REPORT}
    CREATE TABLE layout (id BLOB PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE meta (
        epoch INTEGER NOT NULL,
        lost INTEGER NOT NULL,
        acked INTEGER NOT NULL DEFAULT 0,
        last_seq INTEGER NOT NULL DEFAULT 0,
        contacted_seq INTEGER
    )
"""
_FROM_VERSION_1 = f"""
    ALTER TABLE meta ADD COLUMN acked INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN last_seq INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN contacted_seq INTEGER;
    UPDATE meta SET last_seq = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'report'), 0);
    ALTER TABLE report RENAME TO report_1;
    {_REPORT}
    INSERT INTO report SELECT seq, measured_at, layout_id, payload, dropped FROM report_1;
    DROP TABLE report_1;
    DELETE FROM layout WHERE id NOT IN (SELECT layout_id FROM report)
"""  # noqa: S608 - constants
_PAGE_SIZE = 1024  # bytes: a report is a few hundred, and each commit writes a page or two
_MAX_LOG_SIZE = 4 << 20  # bytes of the write-ahead log that stay allocated after a long transaction
_MAX_SET_ASIDE = 3  # corrupt files kept for a look; each may be as large as the spool
_SHRINK_FROM = 1024  # free pages (1 MiB) after a backlog from which space goes back to the disk
_SHRINK_BY = 512  # pages a report
_SIDE_FILES = ("-wal", "-shm")


class SpoolError(Exception):
    """The spool's file cannot be used now; the text says why."""


class SpoolCorruptError(SpoolError):
    """The spool's file will never be usable again."""


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turns sqlite3's errors into SpoolError, or SpoolCorruptError if the content is at fault."""
    try:
        yield
    except sqlite3.Error as error:
        # The primary code is in the low byte (https://www.sqlite.org/rescode.html). Errors raised by
        # the Python module itself, such as for a closed connection, have none.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise SpoolCorruptError(f"spool {path} is corrupt: {error}") from None
        raise SpoolError(f"spool {path}: {error}") from None


def connect(path: Path, new_epoch: int) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A writer and a reader on the spool at `path`, made with `new_epoch` if there is none yet."""
    with errors(path):
        _keep_private(path)
        writer = _connect(path)
        try:
            writer.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # both before the first table
            writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_SIZE}")
            # An fsync with each commit: without it the last ones may be gone after a power cut.
            writer.execute("PRAGMA synchronous = FULL")
            _check(writer, path, new_epoch)
            reader = _connect(path)
        except BaseException:
            writer.close()
            raise
    return writer, reader


def _keep_private(path: Path) -> None:
    """Have the file there, and it and its log the owner's alone: SQLite gives the log the file's mode.

    Raises SpoolError.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for suffix in ("", *_SIDE_FILES):
            file = path.with_name(path.name + suffix)
            with suppress(FileNotFoundError):
                if file.stat().st_mode & 0o077:
                    file.chmod(0o600)
    except OSError as error:
        raise SpoolError(f"spool {path} cannot be opened: {error.strerror}") from None


def _connect(path: Path) -> sqlite3.Connection:
    # Several threads use a connection, but never two at once; the spool sees to that.
    return sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)


def _check(writer: sqlite3.Connection, path: Path, new_epoch: int) -> None:
    version = writer.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        if writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise SpoolCorruptError(f"{path} is no spool but some other SQLite database")
        with transaction(writer):
            _run(writer, _SCHEMA)
            writer.execute("INSERT INTO meta (epoch, lost) VALUES (?, 0)", (new_epoch,))
            writer.execute(f"PRAGMA user_version = {_VERSION}")
        return
    if version not in (1, _VERSION):
        raise SpoolCorruptError(f"spool {path} has format {version}, this agent knows {_VERSION}")
    verdict = writer.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise SpoolCorruptError(f"spool {path} is corrupt: {verdict}")
    try:
        if version == 1:
            with transaction(writer):
                _run(writer, _FROM_VERSION_1)
                writer.execute(f"PRAGMA user_version = {_VERSION}")
        writer.execute("SELECT seq, kept_at, layout_id, payload, dropped FROM report LIMIT 1")
        writer.execute("SELECT id, payload FROM layout LIMIT 1")
        meta = writer.execute(
            "SELECT epoch, lost, acked, last_seq, coalesce(contacted_seq, 0) FROM meta"
        ).fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise SpoolCorruptError(f"spool {path} is corrupt: {error}") from None  # a table is missing
    if len(meta) != 1 or not all(isinstance(n, int) and n >= 0 for n in meta[0]) or meta[0][0] < 1:
        raise SpoolCorruptError(f"spool {path} is corrupt: its epoch and counts are {meta}")


def _run(writer: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        writer.execute(statement)


@contextmanager
def transaction(writer: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield
        writer.execute("COMMIT")
    except BaseException:
        if writer.in_transaction:  # some errors, such as a full disk, have rolled back already
            writer.execute("ROLLBACK")
        raise


def shrink(writer: sqlite3.Connection) -> None:
    """Give a little of the space that a drained backlog left back to the file system."""
    free = writer.execute("PRAGMA freelist_count").fetchone()[0]
    for _ in range(min(_SHRINK_BY, free - _SHRINK_FROM)):
        # The pragma frees a page a step, and the sqlite3 module takes only one step of it.
        writer.execute("PRAGMA incremental_vacuum(1)")


def set_aside(path: Path) -> Path:
    """Rename the file at `path` to `.corrupt-<n>`, forget the oldest such files; the new path.

    Raises SpoolError if it cannot be renamed.
    """
    earlier = sorted(
        (int(number), file)
        for file in path.parent.glob(f"{path.name}.corrupt-*")
        if (number := file.name.rpartition("-")[2]).isdecimal()
    )
    aside = path.with_name(f"{path.name}.corrupt-{earlier[-1][0] + 1 if earlier else 1}")
    try:
        for _, file in earlier[: len(earlier) - _MAX_SET_ASIDE + 1]:
            file.unlink(missing_ok=True)
        path.rename(aside)
        for suffix in _SIDE_FILES:
            # A log of the old file must not be taken for one of the new file.
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise SpoolError(f"cannot set the corrupt spool {path} aside: {error.strerror}") from None
    return aside
