"""Structured logs on standard error: for people on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog

from collector.core.render import escape
from fleetpulse.systemd import logs_to_journal, with_priority


def configure(level: str, style: str) -> None:
    """`level` is debug, info, warning or error; `style` auto, console or json."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                [structlog.processors.format_exc_info, escape_texts]
                if console
                else [structlog.processors.ExceptionRenderer()]
            ),
            _for_the_journal(renderer) if logs_to_journal() else renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _for_the_journal(renderer: structlog.types.Processor) -> structlog.types.Processor:
    """Lines from which systemd's journal takes their level."""

    def render(logger: object, method: str, event: structlog.typing.EventDict) -> str:
        level = logging.getLevelNamesMapping()[str(event["level"]).upper()]
        return with_priority(level, str(renderer(logger, method, event)))

    return render


def escape_texts(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Names and messages come from hosts: none of them moves a cursor or changes a colour. JSON needs no such care."""
    for key, value in event.items():
        if isinstance(value, str):
            # A traceback's lines stay lines.
            event[key] = "\n".join(map(escape, value.split("\n"))) if key == "exception" else escape(value)
    return event
