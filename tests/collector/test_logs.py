"""What a log line holds came from hosts, and may be read on a terminal."""

from __future__ import annotations

import io
import json
import sys

import pytest
import structlog

from collector import logs

# A terminal's commands (7 bit and 8 bit), line ends, and what reorders a line.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\nhost=other \u202e\u2028"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> object:
    yield
    structlog.reset_defaults()


def logged(style: str, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("info", style)
    log = structlog.get_logger()
    log.warning("host silent", host=HOSTILE, message=[HOSTILE])
    log.error("a stream ended", host="web-1", exc_info=ValueError(HOSTILE))
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_for_people_does_nothing_to_their_terminal(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    text = logged("console", monkeypatch, terminal=terminal)
    ours = {structlog.dev.RESET_ALL, structlog.dev.BRIGHT, structlog.dev.DIM} | {
        getattr(structlog.dev, name) for name in ("RED", "BLUE", "CYAN", "GREEN", "MAGENTA", "YELLOW")
    }
    for code in ours if terminal else ():
        text = text.replace(code, "")
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines), text
    assert r"\x1b[2J\x1b]0;owned\x07\x9b31m\r\nhost=other \u202e\u2028" in lines[0]
    assert lines[-3].startswith(r"ValueError: \x1b[2J")


def test_a_line_for_programs_is_ascii_and_holds_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    text = logged("auto", monkeypatch, terminal=False)
    silent, ended = text.splitlines()
    assert text.isascii()
    assert all(line.isprintable() for line in (silent, ended))
    assert json.loads(silent)["host"] == HOSTILE
    assert "ValueError" in json.loads(ended)["exception"]
