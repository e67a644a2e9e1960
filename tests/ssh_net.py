"""A little network of hosts with a real sshd each, in namespaces, in which everything can go wrong.

The collector under test runs in the hub (`SshNet.command`, or `SshNet.entered` for code of the test's own
process), the hosts around it:

    hub 10.91.0.1 ---+--- h1 10.91.0.2
                     +--- jump 10.91.0.3 / 10.91.1.1 --- inner 10.91.1.2     (the hub has no route there)

A host is an sshd with its own network, processes, hostname and accounts, on the files of this machine:
`ps`, `hostname` and `id` say there what belongs to the host; /proc/loadavg, /proc/meminfo and the boot id are
this machine's. Its accounts are root and `fleetpulse`; the key of the network opens both.

Nothing is left behind, not even after kill -9 of the test process: the kernel then kills the hosts, and
their networks go with them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.namespaces import PATH, Network, entered, inside, missing_namespaces, missing_programs, run
from tests.processes import wait_until

USER = "fleetpulse"
"""The account without privileges that every host has."""
PORT = 22

_UID = 1500
_PREFIX = "fp-ssh-"
_PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "busybox": "busybox"}

_CONFIG = """\
AddressFamily inet
ListenAddress 0.0.0.0:{port}
HostKey {folder}/host_key
{certificate}
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PidFile none
LogLevel VERBOSE
{more}
"""

# The first process of a host; its end is the end of all others there.
_BOOT = """\
set -eu
folder=$1
hostname "$2"
for file in passwd shadow group; do mount --bind "$folder/$file" "/etc/$file"; done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
exec "$3" -D -e -f "$folder/sshd_config"
"""


def missing_parts() -> str:
    """What keeps such a network from being made here; empty when nothing does."""
    return missing_namespaces() or missing_programs(_PROGRAMS)


class SshNet:
    """The network. Use it as a context manager; start hosts from the thread that made it."""

    def __init__(self) -> None:
        _remove_leftovers()
        # Not pytest's folder: the hosts' accounts have to get through to their homes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.folder.chmod(0o711)
        self.client_key = self.folder / "client_key"
        """An ed25519 key, mode 0600, which the hosts let in."""
        self.known_hosts = self.folder / "known_hosts"
        """The host keys as they were when each host was added."""
        self.hosts: list[Host] = []
        self._stack = ExitStack()
        self._network: Network | None = None
        self._members = 0

    def __enter__(self) -> SshNet:
        make_key(self.client_key)
        self.known_hosts.touch()
        self._network = Network(self.new_namespace(), "bridge", "10.91.0.0/24")
        self._network.set_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every host and delete everything."""
        for host in self.hosts:
            host.close()
        self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """The hub's address, as the hosts see it."""
        return self.network.address

    @property
    def network(self) -> Network:
        assert self._network is not None, "the network is not entered"
        return self._network

    def add(
        self,
        name: str,
        *,
        shell: str = "/bin/bash",
        forced_command: str = "",
        behind: Host | None = None,
        authorized: bool = True,
        host_ca: Path | None = None,
        config: Sequence[str] = (),
    ) -> Host:
        """Start a host; returns when its sshd listens.

        `shell` is the accounts' login shell: a program such as /bin/dash, or "busybox" for a host that has
        nothing but busybox on its path. `forced_command` is all that the key may run. `behind` is the jump
        host which alone can reach this one. `authorized` is whether the key opens the host. `host_ca` is a
        CA's key (`make_key`) that signs the host's key. `config` is more lines for sshd, which come first
        and so win.
        """
        host = Host(self, name, shell, forced_command, behind, host_ca, config)
        self.hosts.append(host)
        if authorized:
            host.trust_key()
        host.start()
        with self.known_hosts.open("a") as file:
            file.write(host.host_key_line + "\n")
        return host

    def command(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` in the hub, as the process that is started."""
        return inside(self.network.namespace, *map(str, argv))

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the hub to its end; check=False lets it fail."""
        return run(*self.command(*argv), **options)

    def ssh(
        self, host: Host, command: str, *options: str, user: str = USER, **run_options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host with the ssh client, which knows the keys of `known_hosts`."""
        given = {
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "IdentityFile": self.client_key,
            "IdentitiesOnly": "yes",
            "User": user,
        }
        # A file and not arguments, so that the ssh that -J starts is told the same.
        file = self.folder / f"ssh_config_{user}"
        file.write_text("".join(f"{name} {value}\n" for name, value in given.items()))
        return self.run(
            "ssh", "-F", file, *options, host.address, command, stdin=subprocess.DEVNULL, **run_options
        )

    def entered(self) -> AbstractContextManager[None]:
        """Have this thread, and those that it starts meanwhile, open their sockets in the hub."""
        return entered(self.network.namespace)

    def join(self) -> tuple[Network, int]:
        """The network around the hub, and the next free number there."""
        self._members += 1
        return self.network, self._members + 1

    def new_namespace(self) -> str:
        """Make a namespace that is there until the network is closed."""
        # An open file keeps it alive, so that it cannot outlive this process.
        argv = ["unshare", "--net", "sh", "-c", "echo; read _"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
            assert first.stdin is not None
            assert first.stdout is not None
            assert first.stdout.readline() == b"\n"
            file = os.open(f"/proc/{first.pid}/ns/net", os.O_RDONLY)
            first.stdin.close()
        self._stack.callback(os.close, file)
        return f"/proc/{os.getpid()}/fd/{file}"


class Host:
    """One machine of the network: `SshNet.add` makes it."""

    def __init__(
        self,
        net: SshNet,
        name: str,
        shell: str,
        forced_command: str,
        behind: Host | None,
        host_ca: Path | None,
        config: Sequence[str],
    ):
        self._net = net
        self.name = name
        self.port = PORT
        self.folder = net.folder / name
        self.folder.mkdir(mode=0o755)
        self._forced_command = forced_command
        self._host_ca = host_ca
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._inner: Network | None = None
        self._members = 0
        self._namespace = net.new_namespace()
        network, number = (behind or net).join()
        self.leg = network.connect(self._namespace, f"h{number}", number)
        self.address = self.leg.address
        self._log_path.touch()
        self.forget_key()
        self._make_accounts(shell)
        self._set_config(shell, config)
        self._make_host_key()

    @property
    def host_key_line(self) -> str:
        """The host's key as it is now, as known_hosts has it."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        return f"{self.address} {kind} {key}"

    @property
    def log(self) -> str:
        """What its sshd has logged, over all starts."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def logins(self) -> int:
        """How often somebody was let in, over all starts."""
        return self.log.count("\nAccepted publickey for ")

    def sessions(self) -> int:
        """How many connections its sshd has now, those that are not let in yet among them."""
        if not self.is_running:
            return 0
        return len([pid for pid in _children(self._init) if _name(pid).startswith("sshd")])

    def start(self) -> None:
        """Start the host after `kill` or `refuse`, with what is on its disk; returns when sshd listens."""
        assert not self.is_running, f"{self.name} runs"
        self.leg.plug()
        said = f"Server listening on 0.0.0.0 port {PORT}"
        before = self.log.count(said)
        argv = [
            *("setpriv", "--pdeathsig", "KILL"),
            *inside(self._namespace, "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"),
            *("--kill-child", "--mount-proc", "--", "sh", "-c", _BOOT, "boot", str(self.folder), self.name),
            str(shutil.which("sshd", path=PATH)),
        ]
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the tests
            )
        self._process = process

        def is_listening() -> bool:
            assert process.poll() is None, self.log
            return self.log.count(said) > before

        wait_until(is_listening, what=f"sshd of {self.name}")
        [self._init] = _children(process.pid)

    def kill(self, *, remembered: bool = False) -> None:
        """Cut the power: nothing answers for the address, and connections get no word of it.

        A new connection from the host's network ends after 3 s with EHOSTUNREACH, which is its kernel's own
        word. `remembered` is as in the first half minute, when the kernel still takes the host to be where
        it last was: a new connection then gets no answer at all.
        """
        self._end()
        if remembered:
            self.leg.darken()
        else:
            self.leg.unplug()

    def refuse(self) -> None:
        """End sshd and everything else there: the host answers that nobody listens."""
        self._end()

    def freeze(self) -> None:
        """Stop every process: the host takes connections and says nothing on them."""
        for _ in range(2):  # what was started while we looked was started by one that now stands still
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(signal.SIGCONT)

    def drop(self) -> None:
        """Lose every packet between the host and the network it is in."""
        self.leg.cut()

    def heal(self) -> None:
        """Undo `drop`."""
        self.leg.heal()

    def new_host_key(self) -> None:
        """Start the host with another key, as after it was installed anew. Connections break."""
        self._end()
        self._make_host_key()
        self.start()

    def forget_key(self) -> None:
        """Let nobody in any more. Who is in stays."""
        (self.folder / "authorized_keys").write_text("")

    def trust_key(self) -> None:
        """Undo `forget_key`."""
        key = self._net.client_key.with_suffix(".pub").read_text()
        escaped = self._forced_command.replace('"', '\\"')  # sshd takes no other escapes here
        options = f'restrict,command="{escaped}" ' if escaped else ""
        (self.folder / "authorized_keys").write_text(options + key)

    def command(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` on the host, as root, in the folder `/`.

        The process that is started is not `argv` itself but waits for it; to end that one, use `run` with
        pkill, which sees the host's processes only.
        """
        assert self.is_running, f"{self.name} is off"
        return [
            *("nsenter", f"--target={self._init}", "--net", "--mount", "--uts", "--pid", "--"),
            *map(str, argv),
        ]

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program on the host to its end; check=False lets it fail."""
        return run(*self.command(*argv), **options)

    def close(self) -> None:
        if self.is_running:
            self._end()

    def join(self) -> tuple[Network, int]:
        """The network behind this host, made when it is first asked for, and the next free number there."""
        if self._inner is None:
            number = sum(host._inner is not None for host in self._net.hosts) + 1
            self._inner = Network(self._namespace, "inner", f"10.91.{number}.0/24")
            self._inner.set_up()
        self._members += 1
        return self._inner, self._members + 1

    @property
    def _log_path(self) -> Path:
        return self.folder / "log"

    def _end(self) -> None:
        assert self._process is not None, f"{self.name} is off"
        if self.is_running:
            os.kill(self._init or self._process.pid, signal.SIGKILL)
        self._process.wait(10)  # it waits until all of the host's processes are gone
        self._process, self._init = None, 0

    def _signal(self, number: int) -> None:
        """Send a signal to every process of the host, the first one first."""
        assert self.is_running, f"{self.name} is off"
        own = Path(f"/proc/{self._init}/ns/pid").stat().st_ino
        pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()} - {self._init}
        for pid in (self._init, *sorted(pids)):
            with suppress(OSError):  # it ended meanwhile
                if Path(f"/proc/{pid}/ns/pid").stat().st_ino == own:
                    os.kill(pid, number)

    def _make_host_key(self) -> None:
        key = self.folder / "host_key"
        make_key(key)
        if self._host_ca is not None:
            names = ",".join((self.name, self.address))
            run(
                "ssh-keygen", "-q", "-s", str(self._host_ca), "-I", self.name, "-h", "-n", names, f"{key}.pub"
            )

    def _set_config(self, shell: str, config: Sequence[str]) -> None:
        more = [*config]
        if shell == "busybox":
            more.append(f"SetEnv PATH={self.folder / 'bin'}")
        certificate = f"HostCertificate {self.folder}/host_key-cert.pub" if self._host_ca else ""
        values = {"port": PORT, "folder": self.folder, "certificate": certificate, "more": ""}
        text = "\n".join(more) + "\n" + _CONFIG.format(**values)
        (self.folder / "sshd_config").write_text(text)

    def _make_accounts(self, shell: str) -> None:
        """The files of /etc as the host sees them: this machine's, without its root."""
        if shell == "busybox":
            programs = self.folder / "bin"
            programs.mkdir()
            run("busybox", "--install", "-s", str(programs))
            shell = str(programs / "sh")
        accounts = (("root", 0, self.folder / "root"), (USER, _UID, self.folder / "home"))
        more: dict[str, list[str]] = {"passwd": [], "shadow": [], "group": []}
        for name, uid, home in accounts:
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
            more["passwd"].append(f"{name}:x:{uid}:{uid}::{home}:{shell}")
            more["shadow"].append(f"{name}:*:19000:0:99999:7:::")
            more["group"].append(f"{name}:x:{uid}:")
        for file, lines in more.items():
            with Path("/etc", file).open() as original:
                others = [line.rstrip() for line in original if line.partition(":")[0] not in ("root", USER)]
            path = self.folder / file
            path.touch(0o600 if file == "shadow" else 0o644)
            path.write_text("\n".join([*lines, *others]) + "\n")


def make_key(path: Path) -> Path:
    """Make an ed25519 key pair, `path` and `path`.pub, in the place of what is there."""
    path.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
    return path


def cert_authority_line(ca: Path, hosts: str = "*") -> str:
    """What known_hosts says to trust the host keys that a CA signed."""
    kind, key, *_ = ca.with_suffix(".pub").read_text().split()
    return f"@cert-authority {hosts} {kind} {key}"


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _remove_leftovers() -> None:
    """Delete the folders of test processes that were killed: nothing else can be left of them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
