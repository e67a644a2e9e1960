"""What can happen to a database server while a collector works with it, each as a thing to begin and end.

    fault = Kill(server, database)
    with fault:
        ...  # the server is down
    # it is up again

`database` names the collector's own; its account must not be the administrator's, who is let in
where others are not (see `MariadbServer.account`).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar

from tests.mariadb_server import MariadbServer

_CROWD = "crowd"


class Fault(ABC):
    """One thing that goes wrong. `begin` returns when it has, `end` when its cause is gone."""

    name: ClassVar[str]
    cause: ClassVar[str] = ""
    """What the log and `doctor` must say of it, as a regular expression; empty: it need not be noticed."""
    stops_writes: ClassVar[bool] = True
    """Whether no report at all can be committed meanwhile."""

    def __init__(self, server: MariadbServer, database: str):
        self.server = server
        self.database = database

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def has_bitten(self) -> bool:
        """Whether it has really happened; asked after the end."""
        return True

    def __enter__(self) -> Fault:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _connect(self) -> Any:
        """As the administrator, who has a place of his own, but only one: the last one's may not be free yet."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return self.server.connect()
            except Exception as error:
                if error.args[0] != 1040 or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _kill_connections(self) -> int:
        """Cut whoever works with the database; how many those were."""
        connection = self._connect()
        try:
            cursor = connection.cursor()
            cursor.execute(
                "SELECT id FROM information_schema.PROCESSLIST WHERE db = %s AND user <> 'root'",
                (self.database,),
            )
            found = [row[0] for row in cursor.fetchall()]
            for number in found:
                with suppress(Exception):  # it may have left by itself
                    cursor.execute("KILL %s", (number,))
        finally:
            connection.close()
        return len(found)


class Restart(Fault):
    """The server is stopped in order, and started again."""

    name = "restart"
    cause = r"Can't connect|Lost connection|gone away|shutdown|killed"

    def begin(self) -> None:
        self.server.stop(signal.SIGTERM)

    def end(self) -> None:
        self.server.start()


class Kill(Restart):
    """The server is killed, as by a power loss."""

    name = "kill"

    def begin(self) -> None:
        self.server.stop(signal.SIGKILL)


class Pause(Fault):
    """The server stands still: its connections stay open, and nobody gets an answer."""

    name = "pause"
    cause = r"does not answer|has not answered"

    def begin(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)

    def end(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)


class ShortWaitTimeout(Fault):
    """The server cuts every connection that was idle for a second."""

    name = "wait-timeout"
    stops_writes = False

    def begin(self) -> None:
        self.server.query("SET GLOBAL wait_timeout = 1")
        self._kill_connections()  # it holds for new connections

    def end(self) -> None:
        self.server.query("SET GLOBAL wait_timeout = DEFAULT")
        self._kill_connections()


class _Repeated(Fault):
    """Something that a thread does over and over, until the end."""

    _pause = 0.05  # seconds

    def begin(self) -> None:
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def _repeat(self) -> None:
        while not self._ending.is_set():
            self._once()
            self._ending.wait(self._pause)

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    @abstractmethod
    def _once(self) -> None: ...


class KillConnections(_Repeated):
    """An administrator kills the collector's connections, several times a second."""

    name = "kill-connections"
    stops_writes = False
    killed = 0

    def _once(self) -> None:
        self.killed += self._kill_connections()

    def has_bitten(self) -> bool:
        return self.killed > 0


class ExhaustConnections(Fault):
    """Somebody else takes every connection that the server has, the collector's too."""

    name = "exhaust-connections"
    cause = "Too many connections"

    def begin(self) -> None:
        self.server.query(f"CREATE OR REPLACE USER {_CROWD}@localhost")
        self._crowd: list[Any] = []
        deadline = time.monotonic() + 30
        while self._fill() or self._kill_connections():
            assert time.monotonic() < deadline, "the collector always finds a free connection"

    def _fill(self) -> int:
        """Take what is free; how many those were."""
        before = len(self._crowd)
        while True:
            try:
                self._crowd.append(self.server.connect(user=_CROWD))
            except Exception as error:
                if error.args[0] != 1040:
                    raise
                return len(self._crowd) - before

    def end(self) -> None:
        for connection in self._crowd:
            connection.close()
        self._crowd = []


class LockRows(Fault):
    """Another program locks the rows that every report writes, and does not let go."""

    name = "lock-rows"
    cause = "Lock wait timeout"

    def begin(self) -> None:
        self._connection = self.server.connect(self.database, autocommit=False)
        cursor = self._connection.cursor()
        cursor.execute("SELECT COUNT(*) FROM host_seen FOR UPDATE")

    def end(self) -> None:
        self._connection.rollback()
        self._connection.close()


class Deadlocks(_Repeated):
    """Another program locks the same rows one by one in the opposite order."""

    name = "deadlocks"
    stops_writes = False
    _pause = 0.0

    def begin(self) -> None:
        self._before = self._count()
        self._connection = self.server.connect(self.database, autocommit=False)
        super().begin()

    def _once(self) -> None:
        cursor = self._connection.cursor()
        try:
            cursor.execute("SELECT host FROM host_seen ORDER BY host DESC")
            for (host,) in cursor.fetchall():
                cursor.execute("UPDATE host_seen SET silence = silence + 0 WHERE host = %s", (host,))
                cursor.execute("SELECT SLEEP(0.002)")
        except Exception as error:
            if error.args[0] not in (1205, 1213):
                raise
        self._connection.rollback()

    def end(self) -> None:
        super().end()
        self._connection.close()

    def has_bitten(self) -> bool:
        return self._count() > self._before

    def _count(self) -> int:
        return self.server.status("Innodb_deadlocks")


class ReadOnly(Fault):
    """The server takes no writes, as a replica that lost its primary."""

    name = "read-only"
    cause = "read-only"

    def begin(self) -> None:
        self.server.query("SET GLOBAL read_only = ON")

    def end(self) -> None:
        self.server.query("SET GLOBAL read_only = OFF")


class DiskFull(Fault):
    """Nothing is left on the server's disk, which must be its own: `MariadbServer(disk=...)`."""

    name = "disk-full"
    cause = "No space|full"
    stops_writes = False

    def begin(self) -> None:
        self._ballast = self.server.data_folder / "ballast"
        with self._ballast.open("wb", buffering=0) as file:
            block = 1 << 20
            while block:
                try:
                    file.write(bytes(block))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    block >>= 1

    def end(self) -> None:
        self._ballast.unlink()


EVERYWHERE: tuple[type[Fault], ...] = (
    Restart,
    Kill,
    Pause,
    ShortWaitTimeout,
    KillConnections,
    ExhaustConnections,
    LockRows,
    Deadlocks,
    ReadOnly,
)
"""Every fault that needs nothing but a server; `DiskFull` needs a disk of its own."""
