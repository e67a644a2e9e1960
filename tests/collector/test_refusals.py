"""What is counted and what is told of it."""

from __future__ import annotations

import re
from pathlib import Path

from structlog.testing import capture_logs

from collector.ingest.refusals import COUNTED, Refusals

ROOT = Path(__file__).parents[2]


def test_a_flood_of_refusals_is_counted_in_full_and_told_in_a_few_lines() -> None:
    now = [0.0]
    refusals = Refusals(lambda: now[0])
    with capture_logs() as lines:
        for _ in range(1000):
            now[0] += 0.01
            refusals.tell("malformed", host="h", peer="127.0.0.1", error="no")
        refusals.tell("no_hello", host="unknown", peer="127.0.0.1", error="late")
    assert refusals.counts == {"malformed": 1000, "no_hello": 1}
    told = [line for line in lines if line["kind"] == "malformed"]
    assert len(told) <= 8
    assert {(line["host"], line["peer"], line["error"]) for line in told} == {("h", "127.0.0.1", "no")}
    assert lines[-1]["kind"] == "no_hello", "one kind does not hide another"
    now[0] += 60
    with capture_logs() as lines:
        refusals.tell("malformed", host="h", peer="p", error="no")
    assert sum(line.get("not_logged", 0) for line in [*told, *lines]) + len(told) == 1000


def test_every_count_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = dict(
        re.findall(r"^\| `(\w+)` \| (.+) \|$", text.partition("## What is counted")[2], re.MULTILINE)
    )
    assert documented == COUNTED


def test_every_count_has_a_name_that_is_known() -> None:
    files = [path for folder in ("ingest", "identity") for path in (ROOT / "collector" / folder).glob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    counted = set(re.findall(r'counts\["(\w+)"\]', sources))
    assert counted <= set(COUNTED)
    for name in COUNTED:
        assert sources.count(f'"{name}"') >= 2, f"{name} is documented, and nothing counts it"
