"""Transactions over the pool. Every statement of the collector runs inside one of these."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import get_ident
from typing import Any

from collector.store.dialect import Dialect
from collector.store.errors import StoreError, StoreMisconfigured
from collector.store.link import Link
from collector.store.pool import Pool, PoolStats
from collector.store.turns import Turns
from collector.store.url import SqliteUrl, parse_url

Row = tuple[Any, ...]

_NOBODY = 0  # no thread has this number


class Transaction:
    """One open transaction. Valid only inside `Store.transaction`, in the thread that opened it.

    Anywhere else its methods raise RuntimeError: two threads on one connection read each other's
    answers, and a transaction that has ended is somebody else's by now.
    """

    def __init__(self, dialect: Dialect, cursor: Any):
        self.dialect = dialect
        self._cursor = cursor
        self._owner = get_ident()

    @property
    def cursor(self) -> Any:
        """The driver's cursor."""
        if get_ident() != self._owner:
            raise RuntimeError(
                "this transaction belongs to another thread" if self._owner else "this transaction has ended"
            )
        return self._cursor

    def end(self) -> None:
        """Called when the block is left: what still refers to the transaction cannot use it any more."""
        self._owner = _NOBODY

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> int:
        """Run a statement written with %s; how many rows it affected."""
        self.cursor.execute(self.dialect.sql(statement), parameters)
        return int(self.cursor.rowcount)

    def execute_many(self, statement: str, rows: Sequence[Sequence[object]]) -> int:
        """Run a statement once per row; how many rows that affected."""
        if not rows:
            return 0
        self.cursor.executemany(self.dialect.sql(statement), rows)
        return int(self.cursor.rowcount)

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Every row of a query."""
        self.cursor.execute(self.dialect.sql(statement), parameters)
        return list(self.cursor.fetchall())

    def query_in(self, statement: str, values: Sequence[object], *, chunk: int = 500) -> list[Row]:
        """Every row of a query whose `IN (%s)` stands for any number of values.

        The statement's only parameter is that list.
        """
        rows: list[Row] = []
        for start in range(0, len(values), chunk):
            part = values[start : start + chunk]
            rows += self.query(_spread(statement, part), part)
        return rows

    def execute_in(
        self, statement: str, values: Sequence[object], before: Sequence[object] = (), *, chunk: int = 500
    ) -> int:
        """Run a statement whose `IN (%s)` stands for any number of values; how many rows it affected.

        `before` are its parameters ahead of that list.
        """
        affected = 0
        for start in range(0, len(values), chunk):
            part = values[start : start + chunk]
            affected += self.execute(_spread(statement, part), (*before, *part))
        return affected


class Store:
    """A database behind a fixed-size pool. Every error that leaves it is a `StoreError`."""

    def __init__(self, dialect: Dialect, pool_size: int, pool_timeout: float):
        self.dialect = dialect
        self._pool = Pool(dialect, pool_size, pool_timeout)
        self._turns = Turns() if dialect.single_writer else None
        self._turn_timeout = pool_timeout

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Transaction]:
        """A transaction that commits at the end of the block, and rolls back on any exception.

        An idle connection that the server has cut is replaced unnoticed, because nothing had begun
        on it; one that is lost later loses the transaction (StoreUnavailable).
        """
        with self._turn(write), self._pool.checkout() as link:
            began = time.monotonic()
            tx: Transaction | None = None
            try:
                raw = self._begin(link, write)
                cursor = raw.cursor()
                tx = Transaction(self.dialect, cursor)
                yield tx
                raw.commit()
                cursor.close()
            except BaseException as error:
                self._roll_back(link, error)
                if isinstance(error, self.dialect.driver_error):
                    raise self.dialect.to_store_error(error, time.monotonic() - began) from error
                raise
            finally:
                if tx is not None:
                    tx.end()

    def _turn(self, write: bool) -> AbstractContextManager[None]:
        return self._turns.take(self._turn_timeout) if write and self._turns is not None else nullcontext()

    def _begin(self, link: Link, write: bool) -> Any:
        try:
            raw = link.open()
            self.dialect.begin(raw, write=write)
        except self.dialect.driver_error as error:
            if not self.dialect.is_lost(error):
                raise
            link.discard()
            raw = link.open()
            self.dialect.begin(raw, write=write)
        return raw

    def _roll_back(self, link: Link, error: BaseException) -> None:
        if isinstance(error, Exception) and self.dialect.is_lost(error):
            link.discard()
            return
        if not link.is_open:
            return
        try:
            link.open().rollback()
        except self.dialect.driver_error:
            link.discard()

    @property
    def pool_stats(self) -> PoolStats:
        """How the pool has been used."""
        return self._pool.stats

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


def open_store(
    url: str,
    *,
    password: str = "",
    pool_size: int,
    pool_timeout: float = 5.0,
    create: bool = False,
    patient: bool = False,
) -> Store:
    """The store at a database address; connects only when used.

    `create` allows an embedded database file, and its folder, to be made. `patient` waits a minute,
    not seconds, for a server that accepts a connection and says nothing: for who tries again for ever,
    because each attempt that is given up is one more that the server finds when it wakes up. Raises
    StoreMisconfigured.
    """
    address = parse_url(url)
    if isinstance(address, SqliteUrl):
        from collector.store.sqlite import SqliteDialect

        _check_file(address.path, create=create)
        return Store(SqliteDialect(address), pool_size, pool_timeout)
    try:
        from collector.store.mysql import MysqlDialect
    except ImportError as error:
        raise StoreMisconfigured(
            f"database {address}: mysqlclient cannot be loaded ({error}); run: pip install 'fleetpulse[mysql]'"
        ) from None
    return Store(MysqlDialect(address, password, patient=patient), pool_size, pool_timeout)


def _spread(statement: str, values: Sequence[object]) -> str:
    return statement.replace("IN (%s)", f"IN ({', '.join(['%s'] * len(values))})")


def _check_file(path: Path, *, create: bool) -> None:
    if path.is_file():
        return
    if not create:
        raise StoreMisconfigured(f"database {path}: no such file; run: collector-cli db upgrade")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreMisconfigured(f"database {path}: cannot make its folder: {error.strerror}") from None


__all__ = ["Row", "Store", "StoreError", "Transaction", "open_store"]
