"""The script itself, in every shell that is here, as sshd would run it."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.checks import ChecksConfig
from agent.facts import collect_facts
from agent.measure import Measurer
from collector.ssh import probe
from collector.ssh.measure import HostMeasurer, Measured
from collector.ssh.parse import parse
from fleetpulse.machine.filesystem import CONTAINERS, NETWORK, NOT_REAL
from fleetpulse.model import CheckKey, Measurement, State
from tests.conftest import require

SOURCE = Path(probe.__file__).with_name("probe.sh")
SHELLS = ("dash", "bash", "busybox", "mksh")
PATH = re.search(rb"(?m)^PATH=(.*)$", probe.SCRIPT)
SECOND = 0.1
"""What tests take for a second where something hangs."""


class Shell:
    """One shell, and a script that differs from the real one only in where it looks and how long it waits."""

    def __init__(self, name: str, folder: Path) -> None:
        require("" if shutil.which(name) or name == "mksh" else f"{name} is not here")
        if not shutil.which(name):
            pytest.skip(f"{name} is not here")
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        assert PATH is not None
        path = str(self.programs).encode() + b":" + PATH[1]
        self.argv = [name]
        if name == "busybox":
            # All of its programs, and none of the machine's.
            programs = folder / "busybox"
            programs.mkdir()
            subprocess.run(["busybox", "--install", "-s", programs], check=True, capture_output=True)
            self.argv = [str(programs / "ash")]
            path = f"{self.programs}:{programs}".encode()
        self.script = probe.SCRIPT.replace(PATH[0], b"PATH=" + path)

    def hurry(self) -> None:
        self.replace("second=1", f"second={SECOND}")

    def replace(self, old: str, new: str) -> None:
        assert old.encode() in self.script
        self.script = self.script.replace(old.encode(), new.encode())

    def program(self, name: str, text: str) -> None:
        """Put a program in front of the machine's own."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def mounts(self, *lines: str) -> None:
        table = self.folder / "mounts"
        table.write_text("".join(f"{line} rw 0 0\n" for line in lines))
        self.replace("/proc/self/mounts", str(table))

    def systemd(self, text: str) -> None:
        """A machine with systemd, whose systemctl is this."""
        self.replace("/run/systemd/system", str(self.folder))
        self.program("systemctl", text)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.argv, "-s", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            start_new_session=True,  # so that what it leaves behind is found
            env={**os.environ, **environment},
        )
        assert process.stdin is not None
        process.stdin.write(self.script)
        process.stdin.close()
        return process

    def run(self, *arguments: str, **environment: str) -> bytes:
        """All output of one run, after which nothing of it may be left."""
        process = self.start(*arguments, **environment)
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout as out, process.stderr as err:
            output = out.read()
            assert err.read() == b""
        assert process.wait(10) == 0
        assert left_of(process.pid) == []
        return output


def left_of(session: int, seconds: float = 10) -> list[str]:
    """The command lines of a session's processes that do not end within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == session and stat[0] not in "ZX":
                    found.append((path / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(request.param, tmp_path)


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[Shell]:
    return Shell("dash", tmp_path)


def results(measured: Measured) -> dict[str, tuple[State, str]]:
    checks = measured.content.layout.checks
    return {str(checks[r.check].key): (r.state, r.message) for r in measured.content.results}


def by_series(measured: Measured) -> dict[tuple[CheckKey, Measurement], float]:
    return dict(zip(measured.content.layout.series, measured.content.values, strict=True))


def test_the_same_as_the_agent(shell):
    measurer, host = Measurer(ChecksConfig()), HostMeasurer()
    for _ in range(2):
        before = measurer.measure(time.monotonic(), 0)
        measured = host.measure(shell.run(), 0.1)
        after = measurer.measure(time.monotonic(), 0)
    layout = [check for check in before.layout.checks if check.key.name != "temperature"]
    own = [check for check in measured.content.layout.checks if check.key.name not in ("ssh", "units")]
    assert own == layout
    assert [key for key, (state, _) in results(measured).items() if state is State.UNKNOWN] == []
    values = by_series(measured)
    lows, highs = (dict(zip(x.layout.series, x.values, strict=True)) for x in (before, after))
    for (key, measurement), value in values.items():
        if key.name in ("ssh", "units"):
            continue
        low, high = sorted((lows[key, measurement], highs[key, measurement]))
        assert not math.isnan(value), measurement
        if measurement.unit.endswith("/s") or key.name == "cpu":
            continue  # these are of another span of time
        slack = {"By": 64 << 20, "{process}": 20, "s": 2, "{thread}": 0.3}.get(measurement.unit, 0.02)
        assert low - slack <= value <= high + slack, measurement
    assert values[CheckKey("cpu"), Measurement("system.cpu.logical.count", "{cpu}")] == os.cpu_count()
    assert measured.facts == collect_facts()
    assert abs(measured.measured_at / 1000 - time.time()) < 10
    assert measured.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_rates_are_those_of_the_machine(dash):
    """Processes that are started on purpose are counted, by the host's own clock."""
    host = HostMeasurer()
    first = parse(dash.run())
    host.measure(dash.run(), 0.1)
    for _ in range(40):
        subprocess.run(["/bin/true"], check=True)
    output = dash.run()
    last = parse(output)
    assert first.counters is not None
    assert last.counters is not None
    elapsed = float(last.counters[b"uptime"].split()[0]) - float(first.counters[b"uptime"].split()[0])
    created = Measurement("system.process.created", "{process}/s")
    assert by_series(host.measure(output, 0.1))[CheckKey("processes"), created] >= 40 / elapsed


def test_a_zombie_is_seen(shell):
    child = subprocess.Popen(["/bin/true"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        readings = parse(shell.run())
        assert readings.processes is not None
        assert readings.processes["Z"] >= 1
        assert readings.processes["S"] + readings.processes["I"] > 1
    finally:
        child.wait()


def test_noise_before_the_header_does_not_matter(dash):
    output = b"Welcome!\n* last login *\n" + dash.run()
    assert parse(output).is_complete


def test_nothing_of_the_environment_matters(shell):
    output = shell.run(IFS="/", LC_ALL="C.UTF-8", CDPATH="/", POSIXLY_CORRECT="1")
    readings = parse(output)
    assert readings.is_complete
    assert readings.local is not None
    assert "/" in readings.local.by_mount


def test_a_server_that_hangs_takes_only_network_filesystems(shell):
    shell.mounts("/dev/x / ext4", "filer:/home /home nfs4", "me@x: /mnt/my\\040files fuse.sshfs")
    shell.hurry()
    shell.program(
        "stat", f'case "$*" in *"remote "*) exec sleep 60 ;; esac; PATH={os.defpath}; exec stat "$@"'
    )
    start = time.monotonic()
    measured = HostMeasurer().measure(shell.run(), 0.1)
    assert 2 * SECOND < time.monotonic() - start < 30
    hung = (State.UNKNOWN, "did not answer within 3 s")
    assert results(measured) == {"filesystem /home": hung, "filesystem /mnt/my files": hung}


def test_a_program_that_cannot_be_killed_holds_up_nothing(shell):
    """As `stat` in uninterruptible sleep: here it is the script that spares it."""
    shell.mounts("filer:/home /home nfs4")
    shell.hurry()
    shell.replace('kill -KILL "$job"', ":")
    shell.program("stat", 'case "$*" in *"remote "*) exec sleep 60 ;; esac; echo 4096')
    process = shell.start()
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout as out, process.stderr:
            lines = iter(out.readline, b"")
            output = b""
            while not output.endswith(probe.END + b"\n"):
                output += next(lines)
        assert process.wait(10) == 0
        assert [line.split()[0] for line in left_of(process.pid, 0.5)] == ["sleep"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    measured = HostMeasurer().measure(output, 0.1)
    assert results(measured) == {"filesystem /home": (State.UNKNOWN, "did not answer within 3 s")}


def test_what_still_hangs_is_not_asked_again(shell):
    """A `stat` of an earlier probe in uninterruptible sleep, as the kernel would list it."""
    proc = shell.folder / "proc"
    for pid, name, state, command in [
        ("1", "init", "S", "/sbin/init"),
        ("7", "stat", "D", "stat\0-f\0-c\0remote %S %b %f %a %c %d %n\0/home\0"),
        ("8", "stat", "D", "stat\0/etc\0"),
        ("9", "a) D (b", "R", "x"),
    ]:
        (proc / pid).mkdir(parents=True)
        (proc / pid / "stat").write_text(
            f"{pid} ({name}) {state} 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 9 10 11\n"
        )
        (proc / pid / "cmdline").write_text(command)
    shell.mounts("/dev/x / ext4", "filer:/home /home nfs4")
    shell.replace("/proc/[0-9]*/stat", f"{proc}/[0-9]*/stat")
    shell.replace("/proc/$pid", f"{proc}/$pid")
    measured = HostMeasurer().measure(shell.run(), 0.1)
    assert results(measured) == {
        "filesystem /home": (State.UNKNOWN, "not asked, as an earlier probe still hangs in it")
    }
    readings = parse(shell.run())
    assert readings.processes is not None
    assert readings.processes == {"R": 1, "S": 1, "D": 2, "I": 0, "Z": 0, "T": 0, "X": 0, "?": 0}


def test_without_a_stat_that_knows_filesystems_df_says_it(shell):
    shell.program("stat", "exit 1")
    with_df = HostMeasurer().measure(shell.run(), 0.1)
    (shell.programs / "stat").unlink()
    with_stat = HostMeasurer().measure(shell.run(), 0.1)
    wanted = Measurement("system.filesystem.utilization", "1")
    found, expected = by_series(with_df), by_series(with_stat)
    assert found[CheckKey("filesystem", "/"), wanted] == pytest.approx(
        expected[CheckKey("filesystem", "/"), wanted], abs=0.01
    )


def test_failed_units(shell):
    shell.systemd("echo '* broken.service loaded failed failed Broken'")
    measured = HostMeasurer().measure(shell.run(), 0.1)
    assert results(measured) == {"units": (State.WARNING, "failed: broken.service")}


def test_a_systemctl_that_hangs_is_cut_off(shell):
    shell.hurry()
    shell.systemd("exec sleep 60")
    measured = HostMeasurer().measure(shell.run("agent"), 0.1)
    assert results(measured) == {"units": (State.UNKNOWN, "systemctl did not answer within 2 s")}
    assert measured.agent == ""


AGENT = """case $1 in show)
echo LoadState=loaded; echo ActiveState=failed; echo SubState=failed; echo Result=signal ;; esac"""


@pytest.mark.parametrize(
    ("arguments", "environment", "asked"),
    [
        (("agent",), {}, True),
        ((), {"SSH_ORIGINAL_COMMAND": probe.command(with_agent=True)}, True),
        ((), {}, False),
        ((), {"SSH_ORIGINAL_COMMAND": probe.command()}, False),
        ((), {"SSH_ORIGINAL_COMMAND": "$(touch evil) `touch evil`; touch evil"}, False),
    ],
)
def test_what_became_of_the_agent(dash, arguments, environment, asked):
    dash.systemd(AGENT)
    dash.program("journalctl", "echo 'Killed.'")
    agent = parse(dash.run(*arguments, **environment)).agent
    assert agent == ("unit failed (Result=signal)\nKilled." if asked else "")
    assert not (dash.folder / "evil").exists()
    assert not Path("/evil").exists()


def test_a_system_without_proc_says_what_it_can(shell):
    """As a BSD: no /proc and no /sys, `sysctl` and another `uname`."""
    shell.script = shell.script.replace(b"/proc/", b"/nowhere/proc/").replace(b"/sys/", b"/nowhere/sys/")
    shell.program("uname", "echo FreeBSD 14.1-RELEASE amd64")
    shell.program(
        "sysctl",
        'case $2 in vm.loadavg) echo "{ 0.3 0.2 0.1 }" ;; *) echo "{ sec = 1795000000, usec = 1 }" ;; esac',
    )
    shell.program("ps", "printf 'S\\nSs\\nR+\\nI\\n'")
    shell.program(
        "df", "echo Filesystem 1024-blocks Used Avail Capacity Mounted on; echo 'zroot/a 100 40 60 40%    /'"
    )
    measured = HostMeasurer().measure(shell.run(), 0.1)
    unknown = {key: message for key, (_, message) in results(measured).items()}
    assert unknown == {
        "cpu": "this is FreeBSD: /proc/stat cannot be read",
        "disk": "this is FreeBSD: /sys/block cannot be read",
        "memory": "this is FreeBSD: /proc/meminfo cannot be read",
        "network": "this is FreeBSD: /proc/net/dev cannot be read",
        "swap": "this is FreeBSD: /proc/meminfo cannot be read",
    }
    values = by_series(measured)
    assert values[CheckKey("processes"), Measurement("system.process.count", "{process}")] == 4
    assert values[CheckKey("filesystem", "/"), Measurement("system.filesystem.utilization", "1")] == 0.4


def test_addresses_without_the_program_ip(shell):
    shell.replace("command -v ip", "false")
    facts = HostMeasurer().measure(shell.run(), 0.1).facts
    assert set(collect_facts()["host.ip"].split(",")) <= set(facts["host.ip"].split(","))


def test_the_script_leaves_out_what_the_check_does():
    source = SOURCE.read_text()
    for name, patterns in (("not_real", NOT_REAL), ("containers", CONTAINERS), ("network", NETWORK)):
        match = re.search(rf"(?m)^{name}='(.*)'$", source)
        assert match is not None
        assert tuple(match[1].split("|")) == patterns


def test_mounts_that_store_nothing_are_not_touched(dash):
    dash.mounts(
        *("tmpfs /run tmpfs", "auto /net autofs", "o / overlay", "/dev/y /srv/a\\040b ext4"),
        *("o /var/lib/docker/o overlay", "x /srv/new\\012line ext4", "g /home/me/.gvfs fuse.gvfsd-fuse"),
    )
    dash.program("stat", 'shift 3; if [ $# = 1 ]; then echo 4096; else printf "asked <%s>\\n" "$@"; fi')
    dash.replace('stat -f -c "$kind', 'stat -f -c x "$kind')
    output = dash.run()
    assert re.findall(rb"asked <(/[^>]*)>", output) == [b"/", b"/srv/a b"]


@pytest.mark.parametrize("login_shell", ["dash", "bash", "busybox", "mksh", "csh", "fish", "zsh"])
def test_the_command_in_any_login_shell(login_shell):
    missing = "" if shutil.which(login_shell) else f"{login_shell} is not here"
    require(missing if login_shell in ("dash", "bash", "busybox") else "")
    if missing:
        pytest.skip(missing)
    argv = ["busybox", "ash"] if login_shell == "busybox" else [login_shell]
    done = subprocess.run(
        [*argv, "-c", probe.command(with_agent=True)], input=probe.SCRIPT, capture_output=True, check=True
    )
    assert done.stdout.startswith(b"fleetpulse-probe %d\n" % probe.VERSION)
    assert done.stdout.endswith(b"\n" + probe.END + b"\n")
    assert len(done.stdout) < probe.OUTPUT_LIMIT
    assert (b"\n== agent\n" in done.stdout) is True


def test_what_travels_is_the_script_without_its_comments():
    assert len(probe.SCRIPT) < 10_000
    assert b"\n#" not in probe.SCRIPT
    done = subprocess.run(["sh", SOURCE], capture_output=True, check=True)
    sections = re.findall(rb"(?m)^== .*$", done.stdout)
    assert sections == re.findall(
        rb"(?m)^== .*$",
        subprocess.run(["sh", "-s"], input=probe.SCRIPT, capture_output=True, check=True).stdout,
    )


def test_shellcheck_has_nothing_to_say():
    require("" if shutil.which("shellcheck") else "shellcheck is not here")
    done = subprocess.run(["shellcheck", SOURCE], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("shell", [["dash"], ["bash"], ["busybox", "sh"]], ids=["dash", "bash", "busybox"])
def test_each_further_line_is_answered_by_one_more_look(shell):
    """One shell serves a host for as long as the connection is there; nothing waits beside it."""
    process = subprocess.Popen([*shell, "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as given, process.stdout as out:

        def answer() -> bytes:
            read = b""
            while not read.endswith(b"\n" + probe.END + b"\n"):
                part = os.read(out.fileno(), 65_536)
                assert part, read
                read += part
            return read

        given.write(probe.SCRIPT)
        answers = [answer()]
        for with_agent in (False, True, False):
            assert not psutil.Process(process.pid).children(recursive=True), "not even a zombie"
            given.write(probe.wish(with_agent=with_agent))
            answers.append(answer())
        given.close()
        assert process.wait(10) == 0
        assert out.read() == b""
    assert [b"== agent" in one for one in answers] == [False, False, True, False]
    assert all(one.startswith(b"fleetpulse-probe 1\n") for one in answers)


def test_commands_of_the_probe_do_not_take_what_is_on_its_input(dash):
    dash.program("uname", "cat; echo Linux 1 x")
    process = subprocess.Popen(["dash", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = process.communicate(dash.script.encode() if isinstance(dash.script, str) else dash.script)
    assert out.endswith(probe.END + b"\n")
    assert process.returncode == 0


@pytest.mark.parametrize("shell", [["dash"], ["bash"], ["busybox", "sh"]], ids=["dash", "bash", "busybox"])
def test_a_script_that_is_sent_to_the_script_asks_for_nothing(shell, tmp_path):
    """A key may be bound to the installed script; the collector sends its own all the same."""
    file = tmp_path / "fleetpulse-probe"
    file.write_bytes((Path(probe.__file__).parent / "probe.sh").read_bytes())
    for sent, looks in ((probe.SCRIPT, 1), (file.read_bytes(), 1), (probe.SCRIPT + probe.wish(), 2)):
        done = subprocess.run([*shell, str(file)], input=sent, capture_output=True, check=True, timeout=60)
        assert done.stdout.count(b"\n" + probe.END) == looks
