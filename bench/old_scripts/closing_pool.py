"""One connection per process, opened when the process starts and closed at the end of a task.

The next task of the same process finds it closed.
"""

from __future__ import annotations

from typing import Any

import mysql.connector

from bench.old_scripts import script

connection: Any = None


def connect() -> None:
    global connection
    connection = mysql.connector.connect(**script.database)


def check(host: script.Host) -> None:
    status = script.poll(host)
    try:
        script.save(connection, host, status)
    finally:
        connection.close()


if __name__ == "__main__":
    script.run(check, initialize=connect)
