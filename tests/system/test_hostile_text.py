"""Whatever a host calls itself and its checks is data: it comes out of every command as it went in."""

from __future__ import annotations

import asyncio
import subprocess
import time
import uuid

from agent.delivery import Delivery
from agent.memory_spool import MemorySpool
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Hello, HostId, Layout, Measurement, State
from tests.processes import Site

# Quotes of SQL, placeholders of both drivers, comments, what LIKE and formats take for more than itself.
SQL = "o'hara\" `; DROP TABLE host; -- /* %s %(a)s ? :a {0} \\' \\ % _ #"
# What a terminal or a page takes for more than itself, and what is in no ASCII table.
TERMINAL = "\x1b[2J\x1b]0;owned\x07\r\n\t\x9b31m\u202e[red]<script>alert(1)</script>&amp; é 日本語 🖥"
NUL = "nul\0inside"
HOSTNAME = f"{SQL} {TERMINAL}"
GROUP = f"group {HOSTNAME}"
CHECK = CheckKey(f"check {SQL}", f"{TERMINAL}{NUL}")
MEASUREMENT = Measurement(f"{SQL}{NUL}", "1'")
MESSAGE = f"{SQL} {TERMINAL} {NUL}"


def report(address: str) -> HostId:
    """Be a host with such names, until its report is committed."""
    host_id = HostId(str(uuid.uuid4()))
    layout = Layout((CheckLayout(CHECK, (MEASUREMENT,)),))
    spool = MemorySpool()
    spool.append(time.time_ns() // 1_000_000, layout, (0.5,), (CheckResult(0, State.CRITICAL, MESSAGE),))
    acked = asyncio.Event()
    hello = Hello(
        host_id=host_id,
        hostname=HOSTNAME,
        machine_id=SQL,
        boot_id=SQL,
        epoch=spool.epoch,
        agent_version=SQL,
        interval=1_000,
        ttl=600_000,
        groups=(GROUP,),
    )

    async def deliver() -> None:
        delivery = Delivery(address, spool, hello, on_acked=lambda _: acked.set())
        delivery.set_facts({SQL: MESSAGE})
        running = asyncio.create_task(delivery.run())
        async with asyncio.timeout(20):
            await acked.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(deliver())
    return host_id


def assert_harmless(done: subprocess.CompletedProcess[str]) -> None:
    """No byte of it means anything to a terminal."""
    assert all(line.isprintable() for line in done.stdout.split("\n")), done.stdout
    assert "Traceback" not in done.stderr


def test_names_travel_through_every_command_unchanged(site: Site) -> None:
    collector = site.collector()
    host_id = report(site.address)

    (listed,) = site.json("hosts", "--group", GROUP)["hosts"]
    assert (listed["hostname"], listed["groups"], listed["host_id"]) == (HOSTNAME, [GROUP], host_id)
    shown = site.json("show", HOSTNAME)
    assert shown["facts"] == {SQL: MESSAGE}
    (check,) = shown["checks"]
    assert (check["check"], check["instance"], check["message"]) == (CHECK.name, CHECK.instance, MESSAGE)
    (value,) = shown["values"]
    assert (value["measurement"], value["unit"]) == MEASUREMENT
    events = site.json("events", "--host", HOSTNAME)["events"]
    assert {event["hostname"] for event in events} == {HOSTNAME}
    (state,) = [event for event in events if event["kind"] == "state"]
    assert (state["subject"], state["instance"], state["message"]) == (*CHECK, MESSAGE)
    (worst,) = site.json("status", "--group", GROUP)["hosts"]
    assert worst["hostname"] == HOSTNAME

    for arguments in (
        ["hosts"],
        ["hosts", "--group", GROUP],
        ["show", HOSTNAME],
        ["status", "--group", GROUP],
        ["stale", "--group", GROUP],
        ["events", "--host", HOSTNAME],
    ):
        done = site.cli(*arguments)
        assert done.returncode != 3, done.stderr
        assert_harmless(done)
    # A name that is nearly this one is another.
    for other in (HOSTNAME[:-1] + "?", HOSTNAME.replace("%", "x"), "%", "_" * len(HOSTNAME)):
        missing = site.cli("show", other)
        assert missing.returncode == 3
        assert "no host" in missing.stderr

    # What an admin chooses may be as odd, as long as it can be read.
    renamed, group = f"{SQL} é 日本語 🖥", f"group {SQL}"
    assert site.json("token", "create", "--host", renamed, "--group", group)["token"].startswith("fpt_")
    (token,) = site.json("token", "list")["tokens"]
    assert (token["hostname"], token["groups"]) == (renamed, [group])
    site.cli("revoke", HOSTNAME, "--yes", check=True)
    site.cli("rename", HOSTNAME, renamed, check=True)
    assert site.json("show", renamed)["own_name"] == HOSTNAME
    again = report(site.address)
    site.cli("rebind", renamed, again, "--yes", "--force", check=True)
    (listed,) = site.json("hosts")["hosts"]
    assert (listed["hostname"], listed["host_id"]) == (renamed, again)
    for arguments in (["token", "list"], ["show", renamed], ["events"]):
        assert_harmless(site.cli(*arguments))
    site.cli("remove", renamed, "--yes", check=True)
    assert site.json("hosts")["hosts"] == []
    assert collector.stop() == 0
    assert all(line.isprintable() for line in collector.log.split("\n"))
    assert "Traceback" not in collector.log
