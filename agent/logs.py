"""The agent's log on stderr: lines for people or JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

from agent.terminal import escape
from fleetpulse.systemd import logs_to_journal, with_priority


def configure_logging(form: Literal["console", "json"], level: str) -> None:
    """Send every logger's records at or above `level` to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _formatter(form: Literal["console", "json"]) -> logging.Formatter:
    if form == "json":
        return JsonFormatter()
    return JournalFormatter() if logs_to_journal() else ConsoleFormatter()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line = {
            "time": f"{_utc(record.created)}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


class ConsoleFormatter(logging.Formatter):
    """A line for people. What the collector says may be what another host calls itself."""

    def __init__(self, form: str = "{asctime}.{msecs:03.0f}Z {levelname:<7} {message}") -> None:
        super().__init__(form, "%Y-%m-%dT%H:%M:%S", style="{")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line, without what may follow it."""
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """A traceback, whose lines stay lines."""
        return "\n".join(map(escape, super().formatException(ei).split("\n")))


class JournalFormatter(ConsoleFormatter):
    """The same for systemd's journal, which notes the time itself, and the level if it is told."""

    def __init__(self) -> None:
        super().__init__("{message}")

    def format(self, record: logging.LogRecord) -> str:
        """The record as one or more lines."""
        return with_priority(record.levelno, super().format(record))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
