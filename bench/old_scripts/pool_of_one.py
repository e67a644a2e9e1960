"""A connection pool per process, of one connection."""

from __future__ import annotations

from typing import Any

from mysql.connector.pooling import MySQLConnectionPool

from bench.old_scripts import script

pool: Any = None


def open_pool() -> None:
    global pool
    pool = MySQLConnectionPool(pool_name="script", pool_size=1, **script.database)


def check(host: script.Host) -> None:
    status = script.poll(host)
    connection = pool.get_connection()
    try:
        script.save(connection, host, status)
    finally:
        connection.close()


if __name__ == "__main__":
    script.run(check, initialize=open_pool)
