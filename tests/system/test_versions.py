"""One minor version apart: agents, collectors and commands of the release before, beside those of the checkout.

Real processes of both, with real TLS, on the same databases, identities and state directories. The release is
the wheel in tests/releases/; what it depends on is what the checkout depends on.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from collector.store.schema import known_version
from fleetpulse import __version__
from tests.processes import CHECKOUT, ROOT, Installation, Program, Site, wait_until

[WHEEL] = (ROOT / "tests" / "releases").glob("fleetpulse-*.whl")
RELEASED = WHEEL.name.split("-")[1]
TROUBLE = {"dropped", "new-epoch", "silent", "conflict", "reboot", "removed", "revoked", "enrolment-refused"}
"""Events that nobody may be told of when agents and collectors only change their version."""
JUDGED = """
builtin = false
[[rule]]
check = "uptime"
measurement = "system.uptime"
critical = 0.0
"""
"""One check is CRITICAL, and every other OK, whatever the machine does."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The release before, installed in a folder of its own."""
    folder = tmp_path_factory.mktemp("release")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, WHEEL],
        check=True,
        capture_output=True,
    )
    return Installation(folder / "bin", folder)


@pytest.fixture
def versions(release: Installation) -> dict[str, Installation]:
    return {"before": release, "now": CHECKOUT}


class Mark(NamedTuple):
    """How far an agent has come."""

    epoch: int
    seq: int


def made(site: Site, name: str) -> Mark:
    """The newest report that the agent has put into its spool, delivered or not."""
    try:
        with closing(sqlite3.connect(f"file:{site.folder / name}/spool.db?mode=ro", uri=True)) as spool:
            return Mark(*spool.execute("SELECT epoch, coalesce(max(seq), 0) FROM meta, report").fetchone())
    except sqlite3.OperationalError:  # not made yet
        return Mark(0, 0)


def stored(site: Site, name: str) -> Mark:
    """The newest report of the agent that the collector has committed."""
    with closing(site.open_store()) as store, store.transaction(write=False) as tx:
        rows = tx.query(
            "SELECT s.epoch, s.seq FROM host h JOIN host_seen s ON s.host = h.id WHERE h.host_id = %s",
            (identity(site, name),),
        )
    return Mark(*rows[0]) if rows else Mark(0, 0)


def identity(site: Site, name: str) -> str:
    return (site.folder / name / "host_id").read_text().strip()


def enroll(site: Site, name: str, installation: Installation, *options: str) -> None:
    """Enrol with the agent of an installation, at a collector of whatever the site uses."""
    token, fingerprint = site.token("--host", name, *options), site.ca_fingerprint
    with site.using(installation):
        site.enroll(name, token=token, fingerprint=fingerprint)


def start_agent(site: Site, name: str, installation: Installation, interval: str = "200ms") -> Program:
    with site.using(installation):
        return site.agent(name, interval=interval, ttl="60s")


def wait_for_reports(site: Site, name: str) -> None:
    """Until reports are stored that were made after this call."""
    goal = made(site, name).seq + 2
    wait_until(lambda: stored(site, name).seq >= goal, what=f"reports of {name}")


def wait_for_backlog(site: Site, name: str) -> int:
    """Until reports wait in the spool; how many at least. The collector has stopped."""
    goal = stored(site, name).seq + 3
    wait_until(lambda: made(site, name).seq >= goal, what=f"reports in the spool of {name}")
    return goal


def taken(collector: Program) -> int:
    """Stop the collector, below its agents; how many reports it has committed, those that came twice included."""
    assert collector.stop() == 0
    assert "Traceback" not in collector.log
    return int(json.loads(collector.wait_for_log('"stopped"'))["reports"])


def end(*agents: Program) -> None:
    for agent in agents:
        assert agent.stop() == 0
        assert "Traceback" not in agent.log


def told(site: Site) -> list[str]:
    return [event["kind"] for event in site.json("events", "--limit", "10000")["events"]]


@pytest.mark.parametrize("program", ["fleet-agent", "fleet-collector", "collector-cli"])
def test_the_release_before_is_what_runs(release: Installation, program: str) -> None:
    done = subprocess.run(
        [release.programs / program, "--version"],
        env={**os.environ, "PYTHONPATH": str(release.packages)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == RELEASED


def test_the_release_is_one_minor_version_before_the_checkout() -> None:
    (major, minor), before = (
        [int(part) for part in re.findall(r"\d+", text)[:2]] for text in (__version__, RELEASED)
    )
    assert before == [major, minor - 1] if minor else before[0] == major - 1


@pytest.mark.parametrize(("agents", "collectors"), [("before", "now"), ("now", "before")])
def test_an_agent_and_a_collector_of_two_versions(
    site: Site, versions: dict[str, Installation], agents: str, collectors: str
) -> None:
    """Enrolment, reports, facts, a Goodbye and the way back, and a new certificate of a new CA."""
    agents_own = versions[agents]
    with site.using(versions[collectors]):
        collector = site.collector(tls="on")
        enroll(site, "one", agents_own, "--group", "lab")
        agent = start_agent(site, "one", agents_own)
        wait_for_reports(site, "one")
        wait_until(lambda: site.json("show", "one")["facts"], what="facts")
        shown = site.json("show", "one")
        assert (shown["presence"], shown["groups"]) == ("fresh", ["lab"])
        assert shown["agent_version"] == {"before": RELEASED, "now": __version__}[agents]
        assert {"cpu", "load", "memory", "uptime"} <= {check["check"] for check in shown["checks"]}
        values = {value["measurement"]: value["value"] for value in shown["values"]}
        assert values["system.uptime"] > 0
        assert shown["facts"]["os.kernel.release"] == os.uname().release

        epoch = stored(site, "one").epoch
        taken(collector)
        collector = site.collector(upgrade=False, tls="on")
        wait_for_reports(site, "one")
        site.cli("ca", "rotate", check=True)
        wait_until(lambda: "renewed" in told(site), what="a certificate of the new CA")
        wait_for_reports(site, "one")
        end(agent)
        assert TROUBLE.isdisjoint(told(site))
        assert stored(site, "one").epoch == epoch
        assert taken(collector) > 0


@pytest.mark.parametrize(
    ("first", "then"), [("before", "now"), ("now", "before")], ids=["upgrade", "rollback"]
)
def test_an_agent_goes_on_with_what_the_other_version_left(
    sqlite_site: Site, versions: dict[str, Installation], first: str, then: str
) -> None:
    """The same host, the same epoch, and every report that waits, without enrolling again."""
    site = sqlite_site
    collector = site.collector(tls="on")
    enroll(site, "one", versions[first])
    agent = start_agent(site, "one", versions[first])
    wait_for_reports(site, "one")
    committed = taken(collector)
    assert committed == stored(site, "one").seq
    wait_for_backlog(site, "one")
    assert agent.stop() == 0
    left, host_id = made(site, "one"), identity(site, "one")

    other = start_agent(site, "one", versions[then], interval="60s")  # one report, soon
    found = re.search(r"(\d+) reports wait", other.wait_for_log("reports wait in the spool"))
    assert found is not None
    assert int(found[1]) >= left.seq - committed  # an ack of the last moment may have been missed
    collector = site.collector(upgrade=False, tls="on")
    everything = Mark(left.epoch, left.seq + 1)
    wait_until(lambda: stored(site, "one") == everything, what="what waited, and one report more")
    assert committed + taken(collector) == everything.seq, "each report once"
    end(other)
    assert made(site, "one") == everything
    assert identity(site, "one") == host_id
    assert [host["host_id"] for host in site.json("hosts")["hosts"]] == [host_id]
    assert told(site).count("enrolled") == 1
    assert TROUBLE.isdisjoint(told(site))
    assert not list((site.folder / "one").glob("spool.db.corrupt-*"))


class Picture(NamedTuple):
    """What an admin is told, as far as it does not change while no collector runs."""

    hosts: dict[str, Any]
    details: dict[str, Any]
    events: list[Any]
    tokens: list[Any]

    @classmethod
    def of(cls, site: Site) -> Picture:
        hosts = {host["hostname"]: steady(host) for host in site.json("hosts")["hosts"]}
        return cls(
            hosts,
            {name: steady(site.json("show", name)) for name, host in hosts.items() if host["last_report_at"]},
            site.json("events", "--limit", "10000")["events"],
            site.json("token", "list")["tokens"],
        )


def steady(told: dict[str, Any]) -> dict[str, Any]:
    passing = {"now", "presence", "report_age_seconds", "state", "diagnosis"}
    return {key: value for key, value in told.items() if key not in passing}


def missing(before: Any, now: Any, path: str = "") -> list[str]:
    """What was told and is not told any more; that more is told is well."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key, value in before.items()
            for line in (missing(value, now[key], f"{path}/{key}") if key in now else [f"{path}/{key}"])
        ]
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and len(before) == len(now):
        return [
            line
            for number, pair in enumerate(zip(before, now, strict=True))
            for line in missing(*pair, f"{path}/{number}")
        ]
    return [] if before == now else [f"{path}: {before} became {now}"]


def import_host(site: Site, name: str) -> None:
    file = site.folder / "inventory.json"
    hosts = {name: {"fleetpulse_labels": {"rack": name}}}
    file.write_text(json.dumps({"_meta": {"hostvars": hosts}, "absent": {"hosts": [name]}}))
    site.cli("hosts", "import", str(file), check=True)


def test_a_collector_and_its_database_are_upgraded_while_agents_of_both_versions_go_on(
    site: Site, versions: dict[str, Installation], tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(JUDGED)
    agents = {"one": versions["now"], "two": versions["before"]}
    with site.using(versions["before"]):
        collector = site.collector(tls="on", rules=str(rules))
        running = {}
        for name, installation in agents.items():
            enroll(site, name, installation, "--group", "lab")
            running[name] = start_agent(site, name, installation)
        import_host(site, "three")
        site.cli("rename", "two", "web", check=True)
        for name in agents:
            wait_for_reports(site, name)
        committed = taken(collector)
        waiting = {name: wait_for_backlog(site, name) for name in agents}
        before = Picture.of(site)
    assert before.hosts.keys() == {"one", "web", "three"}
    assert uptime_of(before, "one")["state"] == "CRITICAL"

    for _ in range(2):
        upgraded = site.cli("db", "upgrade", check=True, FLEETPULSE_DATABASE=site.upgrade_url)
    assert upgraded.stdout.splitlines() == [f"the database has schema version {known_version()}"]
    assert not missing(before, Picture.of(site))

    collector = site.collector(upgrade=False, tls="on", rules=str(rules))
    for name in agents:
        wait_for_reports(site, name)  # and with them, all that waited
    assert committed + taken(collector) == sum(stored(site, name).seq for name in agents), "each report once"
    end(*running.values())
    after = Picture.of(site)
    assert not missing(before.events, after.events[: len(before.events)])
    assert TROUBLE.isdisjoint(event["kind"] for event in after.events)
    for name in before.hosts:
        for key in ("host_id", "groups", "labels", "added_at", "certificate_expires_at"):
            assert after.hosts[name][key] == before.hosts[name][key], (name, key)
    for name in before.details:
        assert uptime_of(after, name)["since"] == uptime_of(before, name)["since"]
        assert uptime_of(after, name)["state"] == "CRITICAL"
    for name in agents:
        assert stored(site, name).epoch == made(site, name).epoch
        assert stored(site, name).seq > waiting[name]


def uptime_of(picture: Picture, name: str) -> dict[str, Any]:
    [check] = [check for check in picture.details[name]["checks"] if check["check"] == "uptime"]
    return dict(check)


def test_commands_of_both_versions_read_and_write_one_database(
    site: Site, versions: dict[str, Installation]
) -> None:
    """As long as they know the same schema; else the older one says what is the matter, and does nothing."""
    with site.using(versions["before"]):
        site.upgrade()
        import_host(site, "of-before")
        site.token("--host", "of-before", "--ttl", "1d")
        before = Picture.of(site)
    site.upgrade()
    assert not missing(before, Picture.of(site))
    import_host(site, "of-now")
    site.token("--host", "of-now", "--ttl", "1d")
    now = Picture.of(site)
    assert set(now.hosts) == {"of-before", "of-now"}
    with site.using(versions["before"]):
        if site.json("db", "check")["known_version"] < known_version():
            refused = site.cli("hosts")
            assert refused.returncode == 3
            assert "newer than" in refused.stderr
            return
        assert not missing(Picture.of(site), now)
        import_host(site, "of-before-again")
    assert "of-before-again" in Picture.of(site).hosts
