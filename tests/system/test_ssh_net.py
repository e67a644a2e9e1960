"""The network of real SSH servers does what the tests of the poller take for granted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import asyncssh
import pytest

from tests.conftest import require
from tests.processes import ROOT, clean_environ, wait_until
from tests.ssh_net import USER, Host, SshNet, cert_authority_line, make_key, missing_parts


@pytest.fixture(scope="module")
def net() -> Iterator[SshNet]:
    require(missing_parts())
    with SshNet() as running:
        yield running


@pytest.fixture(scope="module")
def host(net: SshNet) -> Host:
    return net.add("h1")


def banner(net: SshNet, host: Host, seconds: float = 10) -> bytes:
    """What a host says first to who connects from the hub."""
    with net.entered(), socket.create_connection((host.address, host.port), timeout=seconds) as connection:
        return connection.recv(100)


def test_host_is_a_machine_of_its_own(net: SshNet, host: Host):
    before = host.logins()
    said = net.ssh(host, "hostname; whoami; ps -e | grep -c sshd").stdout.split()
    assert said[:2] == ["h1", USER]
    assert int(said[2]) < 5
    assert net.ssh(host, "id -u", user="root").stdout == "0\n"
    assert host.logins() == before + 2


@pytest.mark.parametrize(
    ("shell", "prompt"), [("/bin/dash", "dash"), ("/bin/bash", "bash"), ("busybox", "sh")], ids=str
)
def test_login_shell(net: SshNet, shell: str, prompt: str):
    host = net.add(prompt, shell=shell)
    said = net.ssh(host, "echo $0; command -v awk").stdout.split()
    assert said[0] == prompt
    assert said[1].startswith(str(host.folder) if shell == "busybox" else "/usr/bin/")


def test_forced_command_is_all_the_key_may_run(net: SshNet):
    host = net.add("forced", forced_command='printf "only this, not %s\\n" "$SSH_ORIGINAL_COMMAND"')
    assert net.ssh(host, "reboot").stdout == "only this, not reboot\n"


def test_host_behind_a_jump_host(net: SshNet):
    jump = net.add("jump")
    inner = net.add("inner", behind=jump)
    with pytest.raises(OSError, match="unreachable"):
        banner(net, inner)
    assert net.ssh(inner, "hostname", "-J", jump.address).stdout == "inner\n"


def test_refused_key(net: SshNet):
    host = net.add("stranger", authorized=False)
    assert "Permission denied (publickey)" in net.ssh(host, "true", check=False).stderr
    host.trust_key()
    net.ssh(host, "true")
    host.forget_key()
    assert net.ssh(host, "true", check=False).returncode == 255


def test_changed_host_key(net: SshNet):
    host = net.add("reinstalled")
    before = host.host_key_line
    host.new_host_key()
    assert host.host_key_line != before
    assert "IDENTIFICATION HAS CHANGED" in net.ssh(host, "true", check=False).stderr


def test_host_key_signed_by_a_ca(net: SshNet, tmp_path: Path):
    ca = make_key(tmp_path / "ca")
    host = net.add("signed", host_ca=ca)
    trusted = tmp_path / "known_hosts"
    trusted.write_text(cert_authority_line(ca) + "\n")
    option = f"-oUserKnownHostsFile={trusted}"
    net.ssh(host, "true", option)
    host.new_host_key()
    net.ssh(host, "true", option)
    unsigned = net.add("unsigned")
    assert net.ssh(unsigned, "true", option, check=False).returncode == 255


def test_more_lines_for_sshd(net: SshNet):
    host = net.add("locked", config=["AllowUsers nobody"])
    assert net.ssh(host, "true", check=False).returncode == 255


def test_frozen_host_takes_connections_and_says_nothing(net: SshNet, host: Host):
    assert banner(net, host).startswith(b"SSH-2.0-OpenSSH")
    host.freeze()
    with net.entered():
        connection = socket.create_connection((host.address, host.port), timeout=0.3)
    with connection, pytest.raises(TimeoutError):
        connection.recv(100)
    net.run("busybox", "ping", "-c1", "-W1", host.address)
    host.thaw()
    assert banner(net, host)


def test_dropped_packets_are_a_timeout_until_healed(net: SshNet, host: Host):
    host.drop()
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        banner(net, host, seconds=0.5)
    assert time.monotonic() - start >= 0.5
    host.heal()
    assert banner(net, host)


def test_refusing_host_and_a_dead_one(net: SshNet):
    host = net.add("mortal")
    host.refuse()
    with pytest.raises(ConnectionRefusedError):
        banner(net, host)
    host.start()
    assert banner(net, host)
    host.kill()
    with pytest.raises(OSError, match="No route to host"):
        banner(net, host)
    host.start()
    assert banner(net, host)
    host.kill(remembered=True)
    with pytest.raises(TimeoutError):
        banner(net, host, seconds=0.5)
    host.start()
    assert net.ssh(host, "hostname").stdout == "mortal\n"


def test_sessions_are_counted_and_break_with_the_host(net: SshNet):
    host = net.add("busy")
    assert host.sessions() == 0
    with net.entered(), socket.create_connection((host.address, host.port)) as connection:
        wait_until(lambda: host.sessions() == 1)
        host.refuse()
        assert host.sessions() == 0
        while connection.recv(1000):
            pass


def test_program_runs_on_a_host_and_can_be_killed_there(net: SshNet, host: Host):
    assert host.run("hostname").stdout == "h1\n"
    with subprocess.Popen(host.command("sleep", "1000")) as process:
        wait_until(lambda: host.run("pgrep", "sleep", check=False).stdout)
        host.run("pkill", "-KILL", "sleep")
        assert process.wait(10) in (-signal.SIGKILL, 128 + signal.SIGKILL)


def test_only_its_own_thread_is_in_the_hub(net: SshNet):
    outside = Path("/proc/thread-self/ns/net").stat().st_ino
    with net.entered():
        assert Path("/proc/thread-self/ns/net").stat().st_ino != outside
    assert Path("/proc/thread-self/ns/net").stat().st_ino == outside


def test_code_of_the_test_process_connects_from_the_hub(net: SshNet, host: Host):
    async def whoami() -> object:
        options = {"known_hosts": str(net.known_hosts), "client_keys": [str(net.client_key)], "config": None}
        async with asyncssh.connect(host.address, username=USER, **options) as connection:
            return (await connection.run("whoami", check=True)).stdout

    with net.entered():
        assert asyncio.run(whoami()) == f"{USER}\n"


class Process(NamedTuple):
    """One process, and no later one with its number."""

    pid: str
    started: str

    @classmethod
    def of(cls, folder: Path) -> Process | None:
        """None when it has ended, and nobody has taken note yet."""
        state, *fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else cls(folder.name, fields[18])


def processes(namespaces: set[str], named: Path) -> set[Process]:
    """Those that are in one of these namespaces now, or have the folder in their command line."""
    found: set[Process | None] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            inside = {str(path.stat().st_ino) for path in (folder / "ns").iterdir()}
            if inside & namespaces or bytes(named) in (folder / "cmdline").read_bytes():
                found.add(Process.of(folder))
    return {process for process in found if process is not None}


def are_running(known: set[Process], named: Path) -> bool:
    """Whether one of them goes on, or another that has the folder in its command line."""
    for process in known:
        with suppress(OSError):
            if Process.of(Path("/proc", process.pid)) == process:
                return True
    return bool(processes(set(), named))


_MOUNTED = ("/run", "/etc/passwd", "/etc/shadow", "/etc/group")


def mounts(folder: Path) -> list[str]:
    """What is mounted in the folder, from there, or where a host mounts its own: all else is others'."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(folder) in line or line.split()[4] in _MOUNTED]


_HOSTS = """\
    import os, time
    from tests.ssh_net import SshNet

    with SshNet() as net:
        jump = net.add("jump")
        inner = net.add("inner", behind=jump)
        inner.freeze()
        print(*(os.stat(f"/proc/{host._init}/ns/{kind}").st_ino for host in (jump, inner) for kind in ("net", "pid")))
        print(net.folder, flush=True)
        input()
"""


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_nothing_is_left(end: str):
    require(missing_parts())
    before = mounts(Path(tempfile.gettempdir(), "fp-ssh-nobody"))
    command = [sys.executable, "-c", textwrap.dedent(_HOSTS)]
    environ = clean_environ({})
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        own = set(process.stdout.readline().split())
        folder = Path(process.stdout.readline().strip())
        assert len(own) == 4
        known = processes(own, folder)
        assert len(known) >= 4, "two hosts: each has an sshd, and who waits for its end"
        assert are_running(known, folder)
        assert folder.is_dir()
        if end == "killed":
            os.kill(process.pid, signal.SIGKILL)
        else:
            process.communicate("\n")
            assert not are_running(known, folder)
    wait_until(lambda: not are_running(known, folder), what="the processes are gone")
    assert mounts(folder) == before
    with SshNet():
        assert not folder.exists()
