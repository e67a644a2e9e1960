"""What the collector asks of its surroundings before it serves, and the exit codes when it does not get it."""

from __future__ import annotations

import gc
import resource

from collector.config import Config
from collector.store import collectors
from collector.store.store import Transaction

EXIT_UNAVAILABLE = 69  # sysexits.h EX_UNAVAILABLE: a restart may help
EXIT_SOFTWARE = 70  # sysexits.h EX_SOFTWARE: a defect
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG: a restart does not help


class StartError(Exception):
    """The service cannot start; `status` is the exit code."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def check_budget(config: Config, tx: Transaction) -> None:
    """Refuse to start when the pools of all live collectors do not fit into the server's limit."""
    budget = tx.dialect.connection_budget(tx.cursor)
    if budget is None:
        return
    others = [row for row in collectors.load_live(tx) if row.name != config.name]
    taken = sum(row.pool_size for row in others)
    available = budget - config.connection_reserve
    if config.pool_size + taken > available:
        raise StartError(
            f"pool_size {config.pool_size} and the {taken} connections of {len(others)} other live collectors do not "
            f"fit into the database's max_connections {budget} less connection_reserve {config.connection_reserve}; "
            "lower pool_size or raise max_connections",
            EXIT_CONFIG,
        )


def raise_open_files() -> None:
    """An agent is an open file; the usual soft limit of 1,024 is meant for other programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_garbage_collector() -> None:
    """Look for cycles seldom: what a report allocates is freed without it.

    With a thousand streams open, the default threshold of 700 spent a quarter of the service's CPU
    time on looking through live objects (bench/ingest.py).
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
