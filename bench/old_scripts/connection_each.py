"""One connection per process, opened when the process starts."""

from __future__ import annotations

from typing import Any

import mysql.connector

from bench.old_scripts import script

connection: Any = None


def connect() -> None:
    global connection
    connection = mysql.connector.connect(**script.database)


def check(host: script.Host) -> None:
    script.save(connection, host, script.poll(host))


if __name__ == "__main__":
    script.run(check, initialize=connect)
