"""The other way to keep a fleet's status: every check's state and every value of every report, written down.

What a script does that does not compare: one row per host, check and value, each with the time of the report, in
transactions of as many reports as the collector's batches have. To its favour: keys are small integers, one
connection is kept, rows are there already, and `executemany` sends many in one statement.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

CHECKS, VALUES = 12, 48
ROWS = CHECKS + VALUES + 1
"""Rows per report."""

_TABLES = (
    "CREATE TABLE seen (host INT UNSIGNED PRIMARY KEY, at BIGINT NOT NULL, seq BIGINT NOT NULL)",
    """CREATE TABLE state (host INT UNSIGNED, number TINYINT UNSIGNED, at BIGINT NOT NULL, state TINYINT NOT NULL,
        message VARCHAR(255) NOT NULL, PRIMARY KEY (host, number))""",
    """CREATE TABLE measured (host INT UNSIGNED, number TINYINT UNSIGNED, at BIGINT NOT NULL, content DOUBLE NOT NULL,
        PRIMARY KEY (host, number))""",
)
_UPSERTS = {
    "seen": "INSERT INTO seen (host, at, seq) VALUES (%s, %s, %s) "
    "ON DUPLICATE KEY UPDATE at = VALUES(at), seq = VALUES(seq)",
    "state": "INSERT INTO state (host, number, at, state, message) VALUES (%s, %s, %s, %s, %s) "
    "ON DUPLICATE KEY UPDATE at = VALUES(at), state = VALUES(state), message = VALUES(message)",
    "measured": "INSERT INTO measured (host, number, at, content) VALUES (%s, %s, %s, %s) "
    "ON DUPLICATE KEY UPDATE at = VALUES(at), content = VALUES(content)",
}


class Everything:
    """Writes reports of `hosts` hosts over one connection of the driver, on which autocommit is off."""

    def __init__(self, connection: Any, hosts: int):
        self._connection = connection
        self._hosts = hosts
        self._seq = 0
        self._random = random.Random(1)
        cursor = connection.cursor()
        for statement in _TABLES:
            cursor.execute(statement)

    def write(self, reports: int, batch: int, pace: float = 0.0) -> int:
        """So many reports of one host after the other, `batch` in a transaction; how many it were, to whole batches.

        `pace` is in reports a second; 0: as fast as it can.
        """
        begin, written = time.monotonic(), 0
        for hosts in self._batches(batch):
            if pace:
                time.sleep(max(0.0, begin + written / pace - time.monotonic()))
            self._write_batch(hosts)
            written += len(hosts)
            if written >= reports:
                break
        return written

    def _batches(self, size: int) -> Iterator[range]:
        """All hosts, and all again, for ever."""
        while True:
            self._seq += 1
            for start in range(0, self._hosts, size):
                yield range(start, min(start + size, self._hosts))

    def _write_batch(self, hosts: range) -> None:
        at = int(time.time() * 1000) + self._seq  # never that of the report before
        draw = self._random.random
        cursor = self._connection.cursor()
        cursor.executemany(_UPSERTS["seen"], [(host, at, self._seq) for host in hosts])
        cursor.executemany(
            _UPSERTS["state"], [(host, number, at, 0, "") for host in hosts for number in range(CHECKS)]
        )
        cursor.executemany(
            _UPSERTS["measured"], [(host, number, at, draw()) for host in hosts for number in range(VALUES)]
        )
        self._connection.commit()
