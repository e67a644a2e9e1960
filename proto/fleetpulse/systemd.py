"""What a service tells the systemd that started it (man 3 sd_notify, sd-daemon), and nothing where there is none."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_PER_WATCHDOG = 3  # as sd_watchdog_enabled(3) has it, and one to spare
_MOST = 200  # characters of a status


class Notifier:
    """The socket that systemd gave us. Sending never blocks and never fails: a service runs without it, too."""

    def __init__(self, environ: Mapping[str, str] = os.environ):
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(environ) if self._address else None
        """Seconds within which systemd wants to hear `ALIVE`; None: it does not."""

    def tell(self, *states: str) -> None:
        """Send states, all in one message."""
        if not self._address:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.sendto("\n".join(states).encode(), self._address)

    async def keep_alive(self) -> None:
        """Say that this event loop goes round, for as long as systemd wants to hear it."""
        while self.watchdog is not None:
            self.tell(ALIVE)
            await asyncio.sleep(self.watchdog / _PER_WATCHDOG)


def logs_to_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is a stream of systemd's journal, as JOURNAL_STREAM=DEVICE:INODE says."""
    try:
        where = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{where.st_dev}:{where.st_ino}"


def with_priority(level: int, lines: str) -> str:
    """Lines as the journal takes them: each with the level of syslog that is nearest to that of `logging`."""
    priority = next(number for least, number in _PRIORITIES if level >= least)
    return "\n".join(f"<{priority}>{line}" for line in lines.split("\n"))


def status(text: str) -> str:
    """What `systemctl status` shows; one line."""
    return f"STATUS={' '.join(text.split())[:_MOST]}"


def _address(path: str) -> str:
    # An abstract socket is written with an @ in front.
    if path.startswith("@"):
        return f"\0{path[1:]}"
    return path if path.startswith("/") else ""


def _watchdog(environ: Mapping[str, str]) -> float | None:
    pid, microseconds = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1e6
