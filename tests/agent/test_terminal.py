"""What others chose does nothing to the terminal of who looks at the agent."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from agent.logs import configure_logging
from agent.measure import Measured
from agent.once import as_table
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, State

# A terminal's commands (7 bit and 8 bit), line ends, and what reorders a line.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\nWARNING forged \u202e\u2028"


def test_a_mount_point_or_message_is_shown_harmless() -> None:
    layout = Layout((CheckLayout(CheckKey("filesystem", HOSTILE), (Measurement("m", "1"),)),))
    measured = Measured(1, layout, (0.5,), (CheckResult(0, State.UNKNOWN, HOSTILE),))
    for shown in (measured, replace(measured, results=())):
        lines = as_table(shown).split("\n")
        assert all(line.isprintable() for line in lines)
        assert r"filesystem \x1b[2J" in lines[1]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_log_line_is_one_harmless_line(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.handlers[:], logging.root.level
    try:
        configure_logging(form, "info")  # type: ignore[arg-type]
        logging.getLogger("agent.stream").warning("refused: %s", HOSTILE)
        error = ValueError(HOSTILE)
        logging.getLogger("agent.stream").error("broken", exc_info=error)
    finally:
        logging.root.handlers[:], level = before
        logging.root.setLevel(level)
    lines = capfd.readouterr().err.split("\n")
    assert all(line.isprintable() for line in lines), lines
    if form == "json":
        assert json.loads(lines[0])["message"] == f"refused: {HOSTILE}"
    else:
        assert lines[0].endswith(
            r"WARNING refused: \x1b[2J\x1b]0;owned\x07\x9b31m\r\nWARNING forged \u202e\u2028"
        )
