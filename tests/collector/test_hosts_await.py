"""hosts await: until all hosts of an inventory report, on both kinds of database."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from collector.cli.hosts_awaited import going
from collector.cli.inventory import parse_machines
from collector.cli.roll_call import Missing, Roll, Waiting, call_roll, wait_for_all
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.ssh_settings import SshSettings
from collector.core.status import Silence
from collector.store.collectors import Listening
from collector.store.diagnoses import Finding, save_findings
from collector.store.errors import StoreUnavailable
from collector.store.hosts import add_hosts, find_hosts
from collector.store.records import rename_host
from collector.store.ssh_hosts import save_ssh_host
from collector.store.store import Store
from tests.collector.cli_inside import Cli, Ran
from tests.collector.fleet import MINUTE, Fleet, record

HEARD = Listening(1_000, 1)
NOBODY = Listening(1_000, None)
COMPLETE = Roll(HEARD, 2, ())
ONE_MISSING = Roll(HEARD, 2, (Missing("a", 1),))


@pytest.fixture
def fleet(store: Store) -> Fleet:
    fleet = Fleet(store)
    fleet.listen()
    return fleet


class Look:
    """Runs `hosts await` for names, and only looks."""

    def __init__(self, cli: Cli, path: Path):
        self._cli = cli
        self._path = path

    def __call__(self, names: Iterable[str], *more: str, timeout: str = "0s") -> Ran:
        self._path.write_text("\n".join(names))
        return self._cli("hosts", "await", str(self._path), "--timeout", timeout, *more)


@pytest.fixture
def look(cli: Cli, tmp_path: Path) -> Look:
    return Look(cli, tmp_path / "names")


# --- waiting ---


class Timeline:
    """Time that passes only while somebody waits, and what there is to see then, the last of it for ever.

    `costs` is how many seconds a look takes.
    """

    def __init__(self, *sights: Roll | StoreUnavailable, costs: float = 0.0):
        self.now = 100.0
        self.paused: list[float] = []
        self.told: list[tuple[Roll, float]] = []
        self.complaints: list[str] = []
        self._sights = itertools.chain(sights, itertools.repeat(sights[-1]))
        self._costs = costs

    def wait(self, timeout: float) -> Roll:
        return wait_for_all(
            self._look,
            timeout,
            Waiting(
                lambda: self.now,
                self._pause,
                lambda roll, left: self.told.append((roll, left)),
                lambda error: self.complaints.append(str(error)),
            ),
        )

    def _look(self) -> Roll:
        self.now += self._costs
        sight = next(self._sights)
        if isinstance(sight, StoreUnavailable):
            raise sight
        return sight

    def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.now += seconds


def test_who_reports_already_is_not_waited_for() -> None:
    timeline = Timeline(COMPLETE)
    assert timeline.wait(60) is COMPLETE
    assert (timeline.paused, timeline.told) == ([], [])


def test_it_ends_as_soon_as_all_report() -> None:
    timeline = Timeline(ONE_MISSING, ONE_MISSING, COMPLETE)
    assert timeline.wait(60) is COMPLETE
    assert timeline.told == [(ONE_MISSING, 60), (ONE_MISSING, 59)]
    assert timeline.paused == [1, 1]


def test_the_last_look_is_at_the_end_of_the_time() -> None:
    timeline = Timeline(ONE_MISSING, ONE_MISSING, ONE_MISSING, COMPLETE)
    assert timeline.wait(2.5) is COMPLETE
    assert timeline.paused == [1, 1, 0.5]
    timeline = Timeline(ONE_MISSING, ONE_MISSING, ONE_MISSING, ONE_MISSING, COMPLETE)
    assert timeline.wait(2.5) is ONE_MISSING
    timeline = Timeline(ONE_MISSING)
    assert timeline.wait(0) is ONE_MISSING
    assert timeline.paused == []


def test_looks_that_take_long_do_not_make_it_longer_by_more_than_one() -> None:
    timeline = Timeline(ONE_MISSING, costs=10)
    timeline.wait(15)
    assert timeline.now == 100 + 10 + 1 + 10 + 1 + 10


def test_nobody_is_heard_where_nobody_listens() -> None:
    """A collector that is restarted along with its agents is waited for, too."""
    unheard = Roll(NOBODY, 2, ())
    assert Timeline(unheard, COMPLETE).wait(5) is COMPLETE
    assert Timeline(unheard).wait(5) is unheard


def test_a_database_that_is_away_for_a_while() -> None:
    away, other = StoreUnavailable("away"), StoreUnavailable("other")
    timeline = Timeline(away, away, other, ONE_MISSING, away, COMPLETE)
    assert timeline.wait(60) is COMPLETE
    assert timeline.complaints == ["away", "other", "away"], "each once"
    timeline = Timeline(ONE_MISSING, away)
    with pytest.raises(StoreUnavailable):
        timeline.wait(3)
    assert timeline.now == 103


def test_progress() -> None:
    missing = (Missing("a"), Missing("b"), Missing("c"))
    assert going(Roll(HEARD, 21, missing), 11.2) == "18 of 21 report, 12s left"
    assert going(Roll(HEARD, 21, missing), 8.0) == "18 of 21 report, 8s left"
    assert going(Roll(NOBODY, 2, ()), 90) == "2 of 2 report, no collector is listening, 1m 30s left"


# --- answers ---


def test_all_report(fleet: Fleet, look: Look) -> None:
    fleet.add("web-1")
    _, polled = fleet.add("printer", agent_version="ssh")
    fleet.add("other", ago=5 * MINUTE)
    ran = look(["WEB-1", polled.host_id], timeout="2m")
    assert (ran.status, ran.out, ran.err) == (0, "OK: all 2 hosts report\n", "")
    answer = look(["web-1"], "--json").json
    assert answer.pop("now")
    assert answer == {"state": "OK", "summary": "1 host reports", "hosts_total": 1, "hosts": []}


def test_who_does_not_report_and_why(fleet: Fleet, look: Look) -> None:
    fleet.add("fresh")
    dead, gone = fleet.add("gone", ago=5 * MINUTE, address="192.0.2.9")
    fleet.add("announced", ago=1_000, silence=Silence.ALONE, address="")
    fleet.add("expected", ago=None, address="")
    twins = [fleet.add("twin")[1].host_id for _ in range(2)]
    with fleet.store.transaction() as tx:
        diagnosis = Diagnosis(DiagnosisKind.AGENT_DEAD, "unit failed\nmore")
        save_findings(tx, [Finding(dead, "gone", fleet.now - 5 * MINUTE, diagnosis)], fleet.now)
    names = ["fresh", "unknown", "gone", "announced", "expected", "twin"]
    ran = look(names)
    assert (ran.status, ran.err) == (2, "")
    said, heading, *rows = ran.out.splitlines()
    assert said == (
        "CRITICAL: 5 of 6 hosts do not report: unknown, gone, announced, expected, twin "
        "(1 agent dead, host up; 1 ambiguous name; 1 no such host)"
    )
    assert heading.split() == ["HOST", "PRESENCE", "FOR", "ADDRESS", "WHY"]
    cells = [row.split(maxsplit=4) for row in rows]
    assert cells[0] == ["unknown", "-", "-", "-", "no such host: not imported, and never enrolled"]
    assert [row[0] for row in cells] == names[1:]
    assert re.match(r"gone +stale +5m \d+s +", rows[1])
    assert rows[1].endswith("192.0.2.9  agent dead, host up: unit failed")
    assert rows[2].split()[1] == "stale"
    assert rows[3].split() == ["expected", "never_seen", "2h", "0m", "-", "-"]
    assert "'twin' may be any of 2 hosts: twin (" in rows[4]
    assert all(host_id in rows[4] for host_id in twins)

    answer = look(names, "--json").json
    assert (answer["state"], answer["summary"]) == ("CRITICAL", said.partition(": ")[2])
    assert answer["hosts_total"] == 6
    unknown, silent, _, never, twin = answer["hosts"]
    assert unknown == {
        "name": "unknown",
        "hostname": "unknown",
        "host_id": None,
        "presence": None,
        "last_report_at": None,
        "address": None,
        "diagnosis": None,
        "problem": "no such host: not imported, and never enrolled",
    }
    assert (silent["host_id"], silent["presence"], silent["problem"]) == (gone.host_id, "stale", None)
    assert silent["diagnosis"]["kind"] == "agent dead, host up"
    assert silent["last_report_at"]
    assert (never["presence"], never["last_report_at"], never["diagnosis"]) == ("never_seen", None, None)
    assert twin["problem"].startswith("'twin' may be any of 2 hosts")


def test_a_machine_is_found_by_what_it_calls_itself(fleet: Fleet, look: Look) -> None:
    there = record("vm-3")
    with fleet.store.transaction() as tx:
        add_hosts(tx, [there], fleet.now)
        rename_host(tx, find_hosts(tx, [there.host_id])[there.host_id].host, "web-1", fleet.now)
    [host] = look(["vm-3"], "--json").json["hosts"]
    assert (host["name"], host["hostname"], host["host_id"]) == ("vm-3", "web-1", there.host_id)
    assert look(["vm-3"]).out.startswith("CRITICAL: 1 of 1 host does not report: web-1\n")


def test_a_polled_host_that_never_answered_has_the_address_at_which_it_is_asked(
    fleet: Fleet, look: Look
) -> None:
    host, _ = fleet.add("printer", ago=None, agent_version="", address="")
    with fleet.store.transaction() as tx:
        save_ssh_host(tx, host, SshSettings(address="192.0.2.50"), polled=True)
    assert look(["printer"], "--json").json["hosts"][0]["address"] == "192.0.2.50"


def test_silence_that_nobody_could_hear(fleet: Fleet, look: Look) -> None:
    fleet.listen(since=30_000)
    fleet.add("maybe", ago=5 * MINUTE)
    ran = look(["maybe"])
    assert (ran.status, ran.out.splitlines()[1:][-1].split()[1]) == (2, "unknown")


def test_without_a_collector_nothing_can_be_said(store: Store, look: Look) -> None:
    fleet = Fleet(store)
    fleet.listen(heard=5 * MINUTE)
    fleet.add("fresh")
    fleet.add("gone", ago=9 * MINUTE, silence=Silence.ALONE)
    ran = look(["fresh"])
    assert ran.status == 3
    said, hint = ran.out.splitlines()
    assert said == "UNKNOWN: no collector is listening; none of 1 host silent"
    assert hint.startswith("No collector is listening: ")
    assert hint.endswith("Run: collector-cli doctor")
    ran = look(["fresh", "gone"])
    assert ran.status == 3
    assert ran.out.startswith("UNKNOWN: no collector is listening; 1 of 2 hosts does not report: gone\n")
    assert look(["fresh"], "--json").json["state"] == "UNKNOWN"


def test_files(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    fleet.add("web-1")
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps({"_meta": {"hostvars": {"web-1": {}}}, "g": {"hosts": ["web-1", "web-2"]}}))
    ran = cli("hosts", "await", str(path), "--timeout", "0s")
    assert (ran.status, ran.out.partition("\n")[0]) == (
        2,
        "CRITICAL: 1 of 2 hosts does not report: web-2 (1 no such host)",
    )
    path.write_text("# nobody\n")
    assert cli("hosts", "await", str(path)).err.endswith("names no machine\n")
    assert "cannot read" in cli("hosts", "await", str(tmp_path / "none")).err
    assert "--group does not go ahead of await" in cli("hosts", "--group", "g", "await", str(path)).err


def test_ten_thousand_names_cost_little(fleet: Fleet) -> None:
    names = [f"host-{number:05}" for number in range(10_000)]
    with fleet.store.transaction() as tx:
        add_hosts(tx, [record(name) for name in names[:-1]], fleet.now)
        tx.execute("UPDATE host_seen SET received_at = %s", (fleet.now,))
    machines = list(parse_machines("\n".join(names)))
    with fleet.store.transaction(write=False) as tx:
        began = time.process_time()
        roll = call_roll(tx, machines)
        took = time.process_time() - began
    assert roll.missing == [Missing(names[-1])]
    assert took < 0.5  # seconds; it takes a tenth of that
