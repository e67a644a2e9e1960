"""One place of a pool, with at most one live connection behind it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Link:
    """One place in the pool, with at most one live connection behind it.

    Looks like a DB-API connection to PooledDB. Not shared between threads: the pool sees to that.
    `connect` is told whether this place had a connection before, and lost it; `on_discard` hears of each
    connection that is given up.
    """

    def __init__(self, connect: Callable[[bool], Any], on_discard: Callable[[Any], None]):
        self._connect = connect
        self._on_discard = on_discard
        self._raw: Any = None
        self._had_one = False

    def open(self) -> Any:
        """The driver's connection, made now if there is none.

        Raises the driver's errors, and StoreUnavailable when another thread is connecting in vain.
        """
        if self._raw is None:
            self._raw = self._connect(self._had_one)
            self._had_one = True
        return self._raw

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that has not been discarded."""
        return self._raw is not None

    def discard(self) -> None:
        """Close the connection, because it is lost or its state is unknown."""
        raw, self._raw = self._raw, None
        if raw is not None:
            self._on_discard(raw)
            with suppress(Exception):  # a lost connection may fail to close in any way
                raw.close()

    close = discard

    def disown(self) -> None:
        """In a forked child: keep whatever closes the connection here from telling the server so.

        The parent's would be closed with it. The socket is turned away, not closed: its number must
        not become another's while the driver still has it.
        """
        fileno = getattr(self._raw, "fileno", None)  # an embedded database has no such thing
        if fileno is not None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, fileno())
            os.close(nowhere)

    def cursor(self) -> Any:
        """A cursor of the driver's connection."""
        return self.open().cursor()

    def commit(self) -> None:
        """Called by nobody: transactions end in `Store.transaction`."""

    def rollback(self) -> None:
        """Called by PooledDB under its lock when the link is returned; the transaction ended before."""
