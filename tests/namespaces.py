"""Network namespaces: networks of a test's own, of which the machine's network notices nothing.

A namespace is named by the path of its file, such as /run/netns/NAME or /proc/PID/ns/net.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where to look for programs: Debian keeps those of administrators apart."""

_CLONE_NEWNET = 0x40000000


def missing_programs(packages: dict[str, str]) -> str:
    """What of `packages`, by the program that each brings, is not here; empty when all is."""
    missing = [program for program in packages if shutil.which(program, path=PATH) is None]
    names = " ".join(sorted({packages[program] for program in missing}))
    return f"{', '.join(missing)} not found; run: apt-get install {names}" if missing else ""


def missing_namespaces() -> str:
    """What keeps namespaces from being made here; empty when nothing does."""
    if os.geteuid() != 0:
        return "network namespaces take root; run the tests as root"
    packages = {"ip": "iproute2", "iptables": "iptables", "nsenter": "util-linux", "setpriv": "util-linux"}
    if missing := missing_programs(packages):
        return missing
    tried = (
        "ip link add bridge type bridge && ip link add one type veth peer name two && "
        "iptables -A INPUT -j DROP"
    )
    done = run("unshare", "--net", "sh", "-c", tried, check=False)
    return f"the kernel lacks what is needed: {done.stderr.strip()}" if done.returncode else ""


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program; fails with what it said unless check=False."""
    defaults = {"capture_output": True, "text": True, "timeout": 60, "env": {**os.environ, "PATH": PATH}}
    check = options.pop("check", True)
    done = subprocess.run(argv, check=False, **{**defaults, **options})
    assert not check or done.returncode == 0, (
        f"{' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done


def inside(namespace: str, *argv: str) -> list[str]:
    """The command line that runs `argv` in a network namespace, as the same process."""
    return ["nsenter", f"--net={namespace}", "--", *argv]


def ip(namespace: str, *lines: str) -> None:
    """Run several commands of ip in a namespace."""
    run(*inside(namespace, "ip", "-batch", "-"), input="\n".join(lines) + "\n")


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Have this thread, and those that it starts meanwhile, open their sockets in a namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(namespace, os.O_RDONLY)
    try:
        _set_namespace(other)
        yield
    finally:
        _set_namespace(own)
        os.close(own)
        os.close(other)


def _set_namespace(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True)
class Leg:
    """A machine's cable into a network, of which both ends can be reached."""

    network: str
    """The namespace at the other end."""
    port: str
    """The device there."""
    machine: str
    """The machine's namespace."""
    device: str
    """The device there."""
    address: str

    def unplug(self) -> None:
        """Take the link down: nobody answers for the address any more, nor is known to have it."""
        self.darken()
        run(*inside(self.network, "ip", "neigh", "flush", "to", self.address))

    def darken(self) -> None:
        """Take the link down, which the network has not noticed yet."""
        ip(self.network, f"link set {self.port} down")

    def plug(self) -> None:
        """Undo `unplug` and `darken`."""
        ip(self.network, f"link set {self.port} up")

    def cut(self) -> None:
        """Lose every packet, in both directions: what is sent gets no answer, and no error either."""
        self.heal()
        for namespace, *rule in self._drop_rules():
            run(*inside(namespace, "iptables", "-w", "-I", *rule))

    def heal(self) -> None:
        for namespace, *rule in self._drop_rules():
            run(*inside(namespace, "iptables", "-w", "-D", *rule), check=False)

    def _drop_rules(self) -> list[tuple[str, ...]]:
        # Where packets arrive: a sender whose own packets are dropped would be told.
        return [
            (self.machine, "INPUT", "-i", self.device, "-j", "DROP"),
            (self.network, "INPUT", "-s", self.address, "-j", "DROP"),
        ]


class Network:
    """A bridge in a namespace, which has the subnet's first address there."""

    def __init__(self, namespace: str, bridge: str, subnet: str):
        self.namespace = namespace
        self._bridge = bridge
        self._subnet = IPv4Network(subnet)
        self.address = str(self._subnet[1])

    def set_up(self) -> None:
        ip(
            self.namespace,
            "link set lo up",
            f"link add {self._bridge} type bridge",
            f"address add {self.address}/{self._subnet.prefixlen} dev {self._bridge}",
            f"link set {self._bridge} up",
        )

    def leg(self, machine: str, port: str, number: int) -> Leg:
        """The leg of a machine that has been connected: the same for the same arguments.

        `machine` is its namespace, `port` the device's name on this side (up to 15 characters), `number`
        the machine's place in the subnet, from 2.
        """
        return Leg(self.namespace, port, machine, "eth0", str(self._subnet[number]))

    def connect(self, machine: str, port: str, number: int) -> Leg:
        """Connect a machine whose namespace has no network yet."""
        leg = self.leg(machine, port, number)
        ip(
            self.namespace,
            f"link add {port} type veth peer name {leg.device} netns {machine}",
            f"link set {port} master {self._bridge} up",
        )
        ip(
            machine,
            "link set lo up",
            f"address add {leg.address}/{self._subnet.prefixlen} dev {leg.device}",
            f"link set {leg.device} up",
        )
        return leg
