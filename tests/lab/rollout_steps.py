"""What admins do with a lab, one after the other, and what breaks meanwhile; each step says what must hold."""

from __future__ import annotations

import re

from collector.identity.tokens import PREFIX
from fleetpulse import __version__
from tests.lab import releases
from tests.lab.machines import UNIT, Machine
from tests.lab.rollout import Played, Site, traces
from tests.processes import wait_until

NEXT, CRASHING, SILENT, DEAF = "9.0.0", "9.0.1", "9.0.2", "9.0.3"
_SECRET = re.compile(rf"pass.{{1,6}}word [12]|{PREFIX}[\w-]{{20}}")


def check_from_nothing(site: Site) -> None:
    """Check mode says what would be done where nothing is done yet."""
    with site.step("check mode on machines that have nothing"):
        played = site.play("site", "--check")
    assert played.failed == []
    assert played.changed["h1"] > 0
    assert site.agents[0].exec("test", "-e", "/opt/fleetpulse", check=False).returncode == 1


def roll_out_from_nothing(site: Site) -> None:
    """A collector of this release, agents of the one before it, and a machine that gets none."""
    with site.step("database and collector") as notes:
        played = site.play("collector")
        assert site.collector_version() == __version__
        notes.append(f"{played.changed['h1']} changes")
    with site.step(f"rollout of {len(site.agents)} agents, verify") as notes:
        site.agent_version = releases.PREVIOUS
        played = site.play("rollout")
        notes.append(_a_host(site, played))
    assert f"{site.old.name} gets no agent, for it has no Python" in played.output
    assert set(site.versions().values()) == {releases.PREVIOUS}
    hosts = {host["hostname"]: host for host in site.json("hosts")["hosts"]}
    assert len(hosts) == len(site.agents) + 1
    assert {host["presence"] for host in hosts.values()} == {"fresh"}
    assert hosts[site.old.name]["source"] == "ssh"
    assert {group for host in hosts.values() for group in host["groups"]} == {"odd", "even", "labs"}
    assert all(host["labels"] == {"site": "berlin"} for host in hosts.values())
    expect_no_secret(site)


def change_nothing_again(site: Site) -> None:
    """Everything is as it should be: nothing changes, nobody enrols again."""
    with site.step("the same again: nothing changes") as notes:
        events = len(site.events("enrolled"))
        played = site.play("site")
        notes.append(_a_host(site, played))
    assert played.failed == []
    assert set(played.changed.values()) == {0}
    assert len(site.events("enrolled")) == events


def say_what_would_change(site: Site) -> None:
    """Check mode shows the difference and leaves everything as it is."""
    machine = site.agents[0]
    before = machine.exec("cat", "/etc/fleetpulse/agent.toml").stdout
    with site.step("check mode with --diff"):
        played = site.play(
            "site", "--check", "--diff", fleetpulse_agent_config={"interval": "2s", "ttl": "6s"}
        )
    assert '+interval = "2s"' in played.output
    assert played.changed[machine.name] > 0
    assert machine.exec("cat", "/etc/fleetpulse/agent.toml").stdout == before


def kill_agents(site: Site) -> None:
    """systemd brings back what was killed."""
    with site.step("kill -9 of every agent: back by itself"):
        for machine in site.agents:
            machine.exec("systemctl", "kill", "--signal=KILL", UNIT)
        for machine in site.agents:
            wait_until(lambda m=machine: _shown(m, "NRestarts") != "0", seconds=40)  # type: ignore[misc] - the type of m is that of its default
        site.wait_for_reports(site.agents)


def reboot(site: Site) -> None:
    """A machine that boots again reports again."""
    machines = site.agents[-3:]
    with site.step(f"reboot of {len(machines)} machines: report again"):
        for machine in machines:
            machine.reboot()
        site.wait_for_reports(machines)


def freeze(site: Site) -> None:
    """A machine that is up and dead is named by verify, with the reason."""
    machine = site.agents[0]
    with site.step("a frozen machine: named, with the reason"):
        machine.freeze()
        _expect_named(site, machine, "frozen")
        machine.thaw()
        site.wait_for_reports([machine])


def cut(site: Site) -> None:
    """So is one whose network is cut; what it measured meanwhile is delivered afterwards."""
    machine = site.agents[-1]
    with site.step("a cut network: named; then nothing is lost"):
        before = site.marks()[machine.name]
        machine.cut()
        _expect_named(site, machine, "host dead|network unreachable")
        machine.heal()
        site.wait_for_reports([machine])
        _expect_all_stored(site, [machine], {machine.name: before})


def switch_off(site: Site) -> None:
    """A machine that is off holds up no other, and the rollout says so at its end."""
    machine = site.agents[0]
    with site.step("a machine that is off: named, the others go on"):
        machine.power_off()
        played = site.play("upgrade", check=False, fleetpulse_verify_timeout="30s")
        machine.start()
        site.wait_for_reports([machine])
    assert played.code != 0
    assert re.search(rf"1 of \d+ hosts does not report: {machine.name} \(1 host dead\)", played.output)


def upgrade_agents(site: Site) -> None:
    """A rolling upgrade from the release before to this one, while all of them report."""
    before = site.marks()
    with site.step("rolling upgrade of the agents under load") as notes, site.load(40):
        site.agent_version = __version__
        played = site.play("upgrade")
        notes.append(f"{_a_host(site, played)}, nothing lost")
    assert set(site.versions().values()) == {__version__}
    _expect_all_stored(site, site.agents, before)


def upgrade_collector(site: Site) -> None:
    """The collector goes to the next release while agents of this one report."""
    releases.repack(site.dist, "collector", NEXT)
    before = site.marks()
    with site.step("upgrade of the collector under load") as notes, site.load(40):
        site.play("collector", fleetpulse_version=NEXT)
        site.wait_for_reports(site.agents)
        notes.append("nothing lost")
    assert site.collector_version() == NEXT
    _expect_all_stored(site, site.agents, before)


def go_back_from_bad_agents(site: Site) -> None:
    """A release that does not do goes back by itself on the first machine, and reaches no other."""
    canary, *others = site.agents
    for version, edits in ((CRASHING, releases.CRASHES), (SILENT, releases.SAYS_NOTHING)):
        releases.repack(site.dist, "agent", version, edits)
        before = site.marks()
        with site.step(f"a bad agent ({'crashes' if version == CRASHING else 'is silent'}): rolled back"):
            played = site.play(
                "rollout",
                check=False,
                fleetpulse_version=version,
                fleetpulse_serial=[1, "100%"],
                fleetpulse_max_fail_percentage=10,
                fleetpulse_report_timeout=15,
            )
        assert played.code != 0
        assert played.failed == [canary.name]
        assert f"{version} did not do" in played.output
        assert set(site.versions().values()) == {__version__}
        assert version not in canary.exec("ls", "/opt/fleetpulse/agent/releases").stdout
        for machine in others:
            assert version not in machine.exec("ls", "/opt/fleetpulse/agent/releases").stdout
        site.wait_for_reports(site.agents)
        _expect_all_stored(site, [canary], before)


def go_back_from_a_bad_collector(site: Site) -> None:
    """So does a collector that does not come up."""
    releases.repack(site.dist, "collector", DEAF, releases.DOES_NOT_LISTEN)
    before, version = site.marks(), site.collector_version()
    with site.step("a bad collector: rolled back"):
        played = site.play("collector", check=False, fleetpulse_version=DEAF, fleetpulse_listen_timeout=15)
        assert played.code != 0
        assert f"{version} runs again" in played.output
        assert site.collector_version() == version
        site.wait_for_reports(site.agents)
    _expect_all_stored(site, site.agents, before)


def cut_a_switch_short(site: Site) -> None:
    """A switch that is killed on its way, to a release that does not do, is brought to its end by the next run."""
    machine = site.agents[0]
    bad = f"/opt/fleetpulse/agent/releases/{SILENT}"
    with site.step("a switch that is killed half-way: judged by the next run"):
        releases.repack(site.dist, "agent", SILENT, releases.SAYS_NOTHING)
        name = releases.archive("agent", SILENT)
        machine.exec("mkdir", bad)
        machine.exec("tar", "-xzf", "-", "-C", bad, input=(site.dist / name).read_bytes(), text=False)
        machine.exec("sh", f"{bad}/libexec/prepare", "/usr/bin/python3.11")
        machine.exec("systemd-run", "--unit=switching", f"{bad}/libexec/activate", "600")
        wait_until(lambda: site.versions()[machine.name] == SILENT, what="the switch")
        machine.exec("systemctl", "kill", "--signal=KILL", "switching")
        played = site.play(
            "rollout",
            "--limit",
            machine.name,
            check=False,
            fleetpulse_version=SILENT,
            fleetpulse_report_timeout=10,
        )
        assert f"{__version__} runs again" in played.output
        assert site.versions()[machine.name] == __version__
        site.wait_for_reports([machine])


def lose_the_interpreter(site: Site) -> None:
    """A release that does not run any more, as after an upgrade of the distribution, is installed anew."""
    machine = site.agents[-1]
    with site.step("a release without its interpreter: installed anew"):
        machine.exec("rm", f"/opt/fleetpulse/agent/releases/{__version__}/bin/python3.11")
        machine.exec("systemctl", "restart", UNIT, check=False)
        site.play("rollout", "--limit", machine.name)
        site.wait_for_reports([machine])


def refuse_settings_that_do_not_do(site: Site) -> None:
    """Settings that keep a collector from listening are put back."""
    before = site.collector.exec("cat", "/etc/fleetpulse/collector.toml").stdout
    with site.step("settings of the collector that do not do: put back"):
        played = site.play(
            "collector",
            check=False,
            fleetpulse_collector_config={"listen": "192.0.2.1:18443"},
            fleetpulse_listen_timeout=15,
        )
        assert played.code != 0
        assert "put back the settings" in played.output
        assert site.collector.exec("cat", "/etc/fleetpulse/collector.toml").stdout == before
        site.wait_for_reports(site.agents)


def change_the_password(site: Site) -> None:
    """A new password of the database is taken up, with no connection left that knows the old one."""
    with site.step("another password of the database"):
        site.passwords = {name: f"{password} new" for name, password in site.passwords.items()}
        site.play("collector")
        own = "SELECT id FROM information_schema.PROCESSLIST WHERE user = 'fleetpulse'"
        for (connection,) in site.query(own):
            site.query(f"KILL {connection}")
        site.wait_for_reports(site.agents)


def install_anew(site: Site) -> None:
    """A machine whose disk was made anew gets its record back."""
    machine = site.agents[-1]
    [record] = site.query(f"SELECT id FROM host WHERE hostname = '{machine.name}'")
    with site.step("a machine installed anew: bound to its record"):
        machine.exec("systemctl", "disable", "--now", UNIT)
        wipe = (
            "rm -rf /etc/systemd/system/fleetpulse-agent.service* /opt/fleetpulse /etc/fleetpulse"
            " /var/lib/fleetpulse-agent /etc/ssh/ssh_host_* && userdel fleetpulse-agent && userdel fleetpulse-probe"
            " && systemd-id128 new >/etc/machine-id && ssh-keygen -A && systemctl restart ssh"
        )
        machine.exec("sh", "-c", wipe)
        site.forget_host_key(machine)
        site.play("rollout", "--limit", machine.name)
        site.wait_for_reports([machine])
    assert site.query(f"SELECT id FROM host WHERE hostname = '{machine.name}'") == [record]
    assert site.json("stale")["conflicts"] == []


def expect_no_secret(site: Site) -> None:
    """No token and no password in what Ansible printed, nor in any machine's journal."""
    assert not _SECRET.search(site.printed)
    for machine in (site.collector, site.database, *site.agents):
        assert not _SECRET.search(machine.exec("journalctl", "--no-pager", "-o", "cat").stdout)


def uninstall(site: Site, before: dict[str, dict[str, set[str]]]) -> None:
    """Nothing is left that was not there before; MariaDB is the distribution's."""
    expect_no_secret(site)
    with site.step("uninstall: nothing is left"):
        site.play("uninstall", fleetpulse_everything=True)
        for machine in site.lab.machines:
            left = traces(machine)
            assert left["units"] == set()
            assert left["accounts"] - before[machine.name]["accounts"] <= {"mysql"}
            more = left["files"] - before[machine.name]["files"]
            if machine in (site.collector, site.database):
                more = {path for path in more if not _is_of_a_package(path)}
            assert more == set()
        again = site.play("uninstall", fleetpulse_everything=True)
    assert set(again.changed.values()) == {0}


def _a_host(site: Site, played: Played) -> str:
    """What a machine took, at the forks of ansible.cfg."""
    machines = len(site.agents)
    return f"{played.seconds / machines:.2f} s a host, {played.cpu_seconds / machines:.2f} s CPU of Ansible"


def _is_of_a_package(path: str) -> bool:
    """What MariaDB and what it needs have brought, and its own data."""
    ours = "fleetpulse" in path or "collector-cli" in path
    return not ours and path.startswith(("/etc", "/usr", "/var/lib", "/var/spool"))


def _expect_named(site: Site, machine: Machine, why: str) -> None:
    wait_until(
        lambda: any(
            host["hostname"] == machine.name and re.search(why, (host["diagnosis"] or {}).get("kind", ""))
            for host in site.json("stale")["hosts"]
        ),
        seconds=60,
        what=f"{machine.name} is silent: {why}",
    )
    played = site.play("verify", check=False, fleetpulse_verify_timeout="1s")
    assert played.code != 0
    assert re.search(rf"1 of \d+ hosts does not report: {machine.name} ", played.output)
    assert re.search(why, played.output)


def _expect_all_stored(site: Site, machines: list[Machine], before: dict[str, tuple[int, int]]) -> None:
    """By the marks: the spool was kept, the numbers went on, and what it holds is in the database."""
    for machine in machines:
        made = _last_made(machine)
        wait_until(
            lambda m=machine, made=made: site.marks()[m.name] >= made,  # type: ignore[misc] - the type of m is that of its default
            what=f"everything of {machine.name} is stored",
        )
        epoch, seq = site.marks()[machine.name]
        assert epoch == before[machine.name][0], f"{machine.name} lost its spool"
        assert seq > before[machine.name][1]
    assert site.events("dropped", "new-epoch") == []


def _last_made(machine: Machine) -> tuple[int, int]:
    """(epoch, seq) of the newest report in the machine's spool."""
    script = (
        "import sqlite3; c = sqlite3.connect('file:/var/lib/fleetpulse-agent/spool.db?mode=ro', uri=True);"
        "print(*c.execute('SELECT epoch, max(last_seq, coalesce((SELECT max(seq) FROM report), 0)) FROM meta').fetchone())"
    )
    epoch, seq = machine.exec("python3", "-c", script).stdout.split()
    return int(epoch), int(seq)


def _shown(machine: Machine, value: str) -> str:
    return str(machine.exec("systemctl", "show", "--value", f"--property={value}", UNIT).stdout).strip()
