"""Schema versions: applied forwards only, safe to run twice and by two programs at once.

Each version is a file `migrations/NNNN.<dialect>.sql` whose statements can be repeated, because
MariaDB commits every one by itself: IF NOT EXISTS makes them so, and a column that exists is not added
again. A lease in a table keeps two upgraders apart: unlike a named
lock it holds on a cluster too, and it expires if its owner dies.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from importlib import resources

from collector.store.errors import SchemaMismatch, StoreConflict, StoreUnavailable
from collector.store.store import Store

_LEASE = 60_000  # milliseconds; far longer than a version takes to apply
_BOOTSTRAP = (
    "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL)",
    (
        "CREATE TABLE IF NOT EXISTS schema_lease "
        "(id INTEGER NOT NULL PRIMARY KEY, owner VARCHAR(36) NOT NULL, expires_at BIGINT NOT NULL)"
    ),
)
_ADDS_COLUMN = re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN (?P<column>\w+) ")


def known_version() -> int:
    """The schema version that this program reads and writes."""
    return max(version for version, _ in _migrations("sqlite"))


def stored_version(store: Store) -> int:
    """The schema version of the database; 0 when it holds no schema of ours."""
    try:
        with store.transaction(write=False) as tx:
            rows = tx.query("SELECT MAX(version) FROM schema_version")
    except SchemaMismatch:  # no such table
        return 0
    return int(rows[0][0] or 0)


def require_known_version(store: Store) -> None:
    """Raises SchemaMismatch unless the database holds exactly the version that this program knows."""
    stored, known = stored_version(store), known_version()
    if stored == known:
        return
    if not stored:
        raise SchemaMismatch("the database holds no fleetpulse schema; run: collector-cli db upgrade")
    if stored < known:
        raise SchemaMismatch(
            f"the database has schema version {stored}, this program needs {known}; run: collector-cli db upgrade"
        )
    raise SchemaMismatch(
        f"the database has schema version {stored}, newer than the {known} that this program knows; "
        "upgrade fleetpulse on this machine"
    )


def upgrade(
    store: Store,
    now: Callable[[], int],
    *,
    patience: float = 90.0,
    pause: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Apply every version that is missing, in order; the versions applied.

    `now` gives milliseconds since the Unix epoch. Waits up to `patience` seconds for another
    upgrader. Raises SchemaMismatch for a database newer than this program, StoreUnavailable when
    another upgrader does not finish.
    """
    for statement in _BOOTSTRAP:
        with store.transaction() as tx:
            tx.execute(statement)
    stored, known = stored_version(store), known_version()
    if stored > known:
        require_known_version(store)
    owner = str(uuid.uuid4())
    deadline = time.monotonic() + patience
    while not _take_lease(store, owner, now()):
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                "another program is upgrading the schema and does not finish; try again later"
            )
        pause(0.2)
    try:
        return [version for version in _missing(store) if _apply(store, version, owner, now)]
    finally:
        with store.transaction() as tx:
            tx.execute("DELETE FROM schema_lease WHERE id = 1 AND owner = %s", (owner,))


def _take_lease(store: Store, owner: str, now: int) -> bool:
    try:
        with store.transaction() as tx:
            tx.execute("DELETE FROM schema_lease WHERE id = 1 AND expires_at < %s", (now,))
            inserted = tx.execute(
                f"{store.dialect.insert_ignore} INTO schema_lease (id, owner, expires_at) VALUES (1, %s, %s)",
                (owner, now + _LEASE),
            )
    except StoreConflict:
        return False
    return inserted == 1


def _missing(store: Store) -> Iterator[int]:
    stored = stored_version(store)
    return (version for version, _ in _migrations(store.dialect.name) if version > stored)


def _apply(store: Store, version: int, owner: str, now: Callable[[], int]) -> bool:
    text = dict(_migrations(store.dialect.name))[version]
    for statement in _statements(text):
        if _is_applied(store, statement):
            continue
        with store.transaction() as tx:
            tx.execute(
                "UPDATE schema_lease SET expires_at = %s WHERE id = 1 AND owner = %s", (now() + _LEASE, owner)
            )
            # A percent sign would be a placeholder; no statement of ours has one.
            tx.execute(statement)
    with store.transaction() as tx:
        tx.execute(
            f"{store.dialect.insert_ignore} INTO schema_version (version, applied_at) VALUES (%s, %s)",
            (version, now()),
        )
    return True


def _is_applied(store: Store, statement: str) -> bool:
    """Whether the statement adds a column that exists: neither MySQL nor SQLite can say "if not exists" there."""
    adds = _ADDS_COLUMN.match(statement)
    if adds is None:
        return False
    try:
        with store.transaction(write=False) as tx:
            tx.query(f"SELECT {adds['column']} FROM {adds['table']} WHERE 1 = 0")  # noqa: S608 - names of ours
    except SchemaMismatch:
        return False
    return True


def _migrations(dialect: str) -> list[tuple[int, str]]:
    folder = resources.files("collector.store") / "migrations"
    pattern = re.compile(rf"(\d{{4}})\.{dialect}\.sql")
    return sorted(
        (int(match[1]), entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (match := pattern.fullmatch(entry.name))
    )


def _statements(text: str) -> list[str]:
    without_comments = re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE)
    return [statement.strip() for statement in without_comments.split(";") if statement.strip()]
