"""A lab of real machines: systemd-nspawn containers with their own systemd, sshd, journal and agent.

Every machine has its own network namespace with a cable into a bridge in the hub, where the collector runs:

    hub 10.92.0.1 ---+--- h1 10.92.0.2
                     +--- h2 10.92.0.3 ...

What is special to a machine: its disk (an overlay over one shared root filesystem), processes, hostname,
machine id, boot id, host key, limits of systemd. What is not: the kernel, with its clock, load and memory.
The checkout and its interpreter are there read-only at the same paths as here, so `fleet-agent` is the one
that is being worked on. Everything that a lab is can be found by its name, so one process can start it and
another one end it: `make lab N=5`, `make lab-down`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.lab.cgroups import MachineGroup, missing_cgroups
from tests.namespaces import PATH, Network, entered, inside, missing_namespaces, missing_programs, run
from tests.processes import ROOT, wait_until
from tests.ssh_net import make_key

USER = "admin"
"""The administrator's account: may read the journal, and may do everything with sudo."""
PORT = 22
NAME = "fplab"
"""The lab that `make lab` starts."""
UNIT = "fleetpulse-agent.service"
STATE_DIR = "/var/lib/fleetpulse-agent"

_FOLDER = ROOT / "var" / "lab"
_ROOTFS = _FOLDER / "rootfs"
_LABS = _FOLDER / "labs"
_HERE = Path(__file__).parent
_PROGRAMS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "ssh": "openssh-client",
    "busybox": "busybox",
}
_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
_ENOUGH_INSTANCES = 8192
_INSTANCES_BEFORE = Path("/run/fleetpulse-lab.inotify")
_UID = 1000  # of USER in the root filesystem

_AGENT_UNIT = """\
[Unit]
Description=fleetpulse agent

[Service]
Type=simple
EnvironmentFile=/etc/fleetpulse/agent.env
ExecStart={program} run
Restart=no

[Install]
WantedBy=multi-user.target
"""


def missing_parts() -> str:
    """What keeps a lab from being started here; empty when nothing does."""
    return missing_namespaces() or missing_programs(_PROGRAMS) or missing_cgroups()


class Lab:
    """Some machines and the hub between them. As a context manager it is gone afterwards.

    `machines` is how many there are: h1, h2 and so on. Without it, those that another process has started.
    `is_bare`: they have nothing of ours, and see nothing of the checkout.
    """

    def __init__(self, machines: int = 0, *, name: str = "", is_bare: bool = False):
        self.name = name or f"{NAME}-{os.getpid()}"
        self.is_bare = is_bare
        self.folder = _LABS / self.name
        self.client_key = self.folder / "client_key"
        """An ed25519 key, mode 0600, for USER and root of every machine."""
        self.known_hosts = self.folder / "known_hosts"
        """The machines' host keys."""
        self.namespace = f"/run/netns/{self.name}-hub"
        self.network = Network(self.namespace, "bridge", "10.92.0.0/16")
        self.machines = [Machine(self, number) for number in range(1, (machines or self._found()) + 1)]

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def __getitem__(self, name: str) -> Machine:
        """The machine of that name."""
        return next(machine for machine in self.machines if machine.name == name)

    @property
    def address(self) -> str:
        """The hub's address, as the machines see it."""
        return self.network.address

    def up(self) -> None:
        """Start all machines; returns when each lets people in. The first time makes the root filesystem."""
        remove_leftovers()
        assert not self._found(), f"there is a lab {self.name} already"
        make_rootfs()
        try:
            self._start()
        except BaseException:
            self.down()
            raise

    def _start(self) -> None:
        self.folder.mkdir(parents=True)
        _raise_inotify_limit()
        make_key(self.client_key)
        run("ip", "netns", "add", Path(self.namespace).name)
        self.network.set_up()
        for machine in self.machines:
            machine.set_up()
        self.known_hosts.write_text("".join(f"{machine.host_key_line}\n" for machine in self.machines))
        for machine in self.machines:
            machine.boot()
        for machine in self.machines:
            machine.wait_until_reachable()

    def down(self) -> None:
        """End all machines at once and remove everything but the root filesystem; safe to call again."""
        for number in range(1, max(len(self.machines), self._found()) + 1):
            Machine(self, number).remove()
        run("ip", "netns", "delete", Path(self.namespace).name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        _restore_inotify_limit()

    def command(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` in the hub, as the process that is started."""
        return inside(self.namespace, *map(str, argv))

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the hub to its end; check=False lets it fail."""
        return run(*self.command(*argv), **options)

    def entered(self) -> AbstractContextManager[None]:
        """Have this thread, and those that it starts meanwhile, open their sockets in the hub."""
        return entered(self.namespace)

    def _found(self) -> int:
        """How many machines there are, or are left of a lab whose folder was removed."""
        places = [*self.folder.glob("h[0-9]*"), *Path("/run/netns").glob(f"{self.name}-h[0-9]*")]
        return max((int(path.name.rpartition("h")[2]) for path in places), default=0)


class Machine:
    """One machine of a lab."""

    def __init__(self, lab: Lab, number: int):
        self._lab = lab
        self._number = number
        self.name = f"h{number}"
        self.port = PORT
        self.folder = lab.folder / self.name
        self.namespace = f"/run/netns/{lab.name}-{self.name}"
        self.leg = lab.network.leg(self.namespace, self.name, number + 1)
        self.address = self.leg.address
        self._group = MachineGroup(lab.name, self.name)

    @property
    def host_key_line(self) -> str:
        """The host's key, as known_hosts has it."""
        kind, key, *_ = (self._upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        return f"{self.address} {kind} {key}"

    @property
    def console(self) -> str:
        """What the machine printed while it booted, and what kept it from it."""
        return (self.folder / "console").read_text(errors="replace")

    @property
    def leader(self) -> int:
        """The machine's first process, as it is numbered here; 0 while it is off."""
        return next((pid for pid, number in self._numbers().items() if number == 1), 0)

    @property
    def is_running(self) -> bool:
        return self.leader != 0

    @property
    def is_frozen(self) -> bool:
        return self._group.is_frozen

    def start(self) -> None:
        """Switch the machine on; returns when it lets people in."""
        assert not self.is_running, f"{self.name} runs"
        self.boot()
        self.wait_until_reachable()

    def power_off(self) -> None:
        """End every process at once, as a power failure does: nothing answers for the address.

        What is on its disk stays. A connection from the hub ends after 3 s with EHOSTUNREACH.
        """
        self._kill()
        self.leg.unplug()

    def reboot(self) -> None:
        """Have systemd boot the machine again; returns when it lets people in."""
        before = self.leader
        self.exec("systemctl", "--no-block", "reboot")
        wait_until(lambda: self.leader not in (0, before), seconds=60, what=f"{self.name} boots again")
        self.wait_until_reachable()

    def freeze(self) -> None:
        """Stop every process: ping answers, connections are taken, and nothing is said on them."""
        self._group.set_frozen(True)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._group.set_frozen(False)

    def cut(self) -> None:
        """Lose every packet between the machine and all others, in both directions."""
        self.leg.cut()

    def heal(self) -> None:
        """Undo `cut`."""
        self.leg.heal()

    def exec(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine to its end, as root and without ssh; check=False lets it fail."""
        leader = self.leader
        assert leader, f"{self.name} is off"
        assert not self.is_frozen, f"{self.name} is frozen"
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return run("nsenter", f"--target={leader}", *spaces, "--", *argv, **options)

    def ssh(
        self, command: str, *options: str, user: str = USER, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine with the ssh client, from the hub."""
        return self._lab.run(
            *self.ssh_command(*options, user=user), command, stdin=subprocess.DEVNULL, **more
        )

    def ssh_command(self, *options: str, user: str = USER) -> list[str]:
        """The command that opens a shell on the machine, for who is in the hub."""
        lab = self._lab
        files = ["-i", str(lab.client_key), "-o", f"UserKnownHostsFile={lab.known_hosts}"]
        return ["ssh", *files, "-o", "ConnectTimeout=10", *options, f"{user}@{self.address}"]

    def unit_state(self, unit: str) -> str:
        """What systemd says of a unit, such as active, inactive, failed."""
        return self.exec("systemctl", "is-active", unit, check=False).stdout.strip()

    def enroll(self, collector: str, token: str, ca_fingerprint: str, *options: str) -> None:
        """Make the machine a host of the collector at HOST:PORT."""
        program = str(_program("fleet-agent"))
        given = ("--collector", collector, "--token-file", "-", "--ca-fingerprint", ca_fingerprint)
        state_dir = f"FLEETPULSE_AGENT_STATE_DIR={STATE_DIR}"
        self.exec("env", state_dir, program, "enroll", *given, *options, input=token)

    def start_agent(self, **settings: str) -> None:
        """Run the agent, now and after each boot, with FLEETPULSE_AGENT_<settings>.

        It is the unit UNIT, which systemd does not start again when it is killed.
        """
        values = {"state_dir": STATE_DIR, "interval": "1s", **settings}
        lines = "".join(f'FLEETPULSE_AGENT_{key.upper()}="{value}"\n' for key, value in values.items())
        self.exec("sh", "-c", "mkdir -p /etc/fleetpulse && cat >/etc/fleetpulse/agent.env", input=lines)
        self.exec("systemctl", "enable", UNIT)
        self.exec("systemctl", "restart", UNIT)

    def kill_agent(self, with_signal: str = "KILL") -> None:
        """Send the agent a signal; after KILL its unit is failed and stays so."""
        self.exec("systemctl", "kill", f"--signal={with_signal}", UNIT)

    def wait_until_reachable(self, seconds: float = 120) -> None:
        """Wait until sshd says its first words and systemd lets people in."""
        with self._lab.entered():
            wait_until(self._says_something, seconds=seconds, what=f"sshd of {self.name} answers")
        # The last thing before logins are allowed.
        wait_until(
            lambda: self.unit_state("systemd-user-sessions.service") == "active",
            seconds=seconds,
            what=f"{self.name} is up",
        )

    def boot(self) -> None:
        """Switch the machine on, and do not wait."""
        self.leg.plug()
        argv = [
            *("unshare", "--mount", "--propagation", "private", "sh", _HERE / "machine.sh"),
            *(_ROOTFS, self.folder, f"{self._lab.name}-{self.name}", self.name, self.namespace),
            " ".join(map(str, self._group.folders)),
            *(f"--bind-ro={path}:{path}:norbind" for path in _shared_folders() if not self._lab.is_bare),
        ]
        environ = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        with (self.folder / "console").open("ab") as console:
            # It outlives this process, or is ended by what it finds in the machine's control group.
            run(
                *("setsid", "--fork", *map(str, argv)),
                capture_output=False,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**environ, "PATH": PATH},
                cwd="/",
            )
        wait_until(self._group.pids, what=f"{self.name} is switched on")

    def set_up(self) -> None:
        """Make the machine's disk, network and control groups."""
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True)
        run("ip", "netns", "add", Path(self.namespace).name)
        self._lab.network.connect(self.namespace, self.leg.port, self._number + 1)
        self._group.make()
        make_key(self._folder("etc/ssh") / "ssh_host_ed25519_key")
        key = self._lab.client_key.with_suffix(".pub").read_text()
        for home, uid in (("root", 0), (f"home/{USER}", _UID)):
            folder = self._folder(f"{home}/.ssh")
            (folder / "authorized_keys").write_text(key)
            for path in (folder.parent, folder, folder / "authorized_keys"):
                os.chown(path, uid, uid)
            folder.chmod(0o700)
        if self._lab.is_bare:
            return
        (self._folder("usr/local/bin") / "fleet-agent").symlink_to(_program("fleet-agent"))
        unit = self._folder("etc/systemd/system") / UNIT
        unit.write_text(_AGENT_UNIT.format(program=_program("fleet-agent")))

    def remove(self) -> None:
        """End the machine and remove all that it was."""
        self._kill()
        run("ip", "netns", "delete", Path(self.namespace).name, check=False)
        self._group.remove()
        for folder in Path("/run/systemd/nspawn").glob(f"*/{self._lab.name}-{self.name}"):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _upper(self) -> Path:
        return self.folder / "upper"

    def _folder(self, path: str) -> Path:
        """A folder of the machine's disk before it is switched on first, with the rights it has below."""
        folder = self._upper
        for part in Path(path).parts:
            folder /= part
            folder.mkdir(exist_ok=True)
            below = _ROOTFS / folder.relative_to(self._upper)
            if below.exists():
                shutil.copymode(below, folder)
        return folder

    def _numbers(self) -> dict[int, int]:
        """The processes, and what each is numbered in the machine; 0 for those that run it."""
        return {pid: _number_inside(pid) for pid in self._group.pids()}

    def _kill(self) -> None:
        """Kill every process of the machine; what runs it clears up after itself, if it lives so long."""
        for pid, number in self._numbers().items():
            if number:
                _end(pid)
        if self.is_frozen:
            self.thaw()
        with suppress(pytest.fail.Exception):
            wait_until(lambda: not self._group.pids(), seconds=3)

        def is_gone() -> bool:
            pids = self._group.pids()
            for pid in pids:
                _end(pid)
            return not pids

        wait_until(is_gone, what=f"the processes of {self.name} are gone")

    def _says_something(self) -> bool:
        try:
            with socket.create_connection((self.address, PORT), timeout=1) as connection:
                return bool(connection.recv(1))
        except OSError:
            return False


def make_rootfs() -> None:
    """Make the root filesystem of all machines, once; again when it is to be another one."""
    script = _HERE / "rootfs.sh"
    made_by = _ROOTFS.with_suffix(".made-by")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    # Several test processes may want it at once.
    with _ROOTFS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made_by.exists() and made_by.read_bytes() == script.read_bytes() and _ROOTFS.is_dir():
            return
        print("lab: making the root filesystem, which takes a minute", file=sys.stderr)  # noqa: T201
        run("sh", str(script), str(_ROOTFS), timeout=900)
        made_by.write_bytes(script.read_bytes())


def remove_leftovers() -> None:
    """End the labs of test processes that were killed."""
    for folder in _LABS.glob(f"{NAME}-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            Lab(name=folder.name).down()


def _program(name: str) -> Path:
    return Path(sysconfig.get_path("scripts")) / name


def _shared_folders() -> Sequence[Path]:
    """The checkout, and what the interpreter needs of what is outside of it."""
    prefixes = [Path(sys.prefix), Path(sys.base_prefix)]
    wanted = [ROOT, *prefixes, *(prefix.resolve() for prefix in prefixes)]
    system = Path("/usr")  # an interpreter of the distribution is in the root filesystem, too
    return [
        path
        for place, path in enumerate(wanted)
        if path != system and not any(path.is_relative_to(other) for other in wanted[:place])
    ]


def _number_inside(pid: int) -> int:
    """How a process is numbered in its own namespace; 0 if that is ours, or it ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    return int(numbers[-1]) if len(numbers) > 1 else 0


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _raise_inotify_limit() -> None:
    """Every systemd takes some; what the limit was is remembered until the last lab is gone."""
    limit = int(_INSTANCES.read_text())
    if limit < _ENOUGH_INSTANCES:
        _INSTANCES_BEFORE.write_text(str(limit))
        _INSTANCES.write_text(str(_ENOUGH_INSTANCES))


def _restore_inotify_limit() -> None:
    if _INSTANCES_BEFORE.exists() and not any(_LABS.glob("*")):
        _INSTANCES.write_text(_INSTANCES_BEFORE.read_text())
        _INSTANCES_BEFORE.unlink()
