"""A thousand machines without an agent: SSH servers on addresses of 127.0.0.0/8. Runs as a process.

`python -m bench.crawl_hosts --folder DIR --hosts N --hang SHARE` listens on 127.20.x.y, all on one port, and
answers the collector's probe and what scripts usually run (`uptime`, `df -P`, `cat /proc/meminfo`,
`cat /proc/loadavg`) with this machine's own answers, whose numbers move from one request to the next. Every
host has a hostname, a machine id and a boot id of its own. DIR gets what a client needs: client_key,
known_hosts and inventory.json, as `ansible-inventory --list` prints it.

Of the hosts that hang every second one accepts TCP and says nothing; the others stop in mid-output.

Prints one JSON object when it listens, one for each line on its standard input (what every host has seen
since the last), and a last one on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from collector.ssh.probe import SCRIPT

PROBE = Path(__file__).parents[1] / "collector" / "ssh" / "probe.sh"
USER = "fleet"
_PLAIN = ("uptime", "df -P", "cat /proc/meminfo", "cat /proc/loadavg")
_IDENTITY_FILES = (
    "/proc/sys/kernel/hostname",
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/proc/sys/kernel/random/boot_id",
    "/sys/class/dmi/id/product_uuid",
)
_READS_INPUT = re.compile(r"(exec )?(/bin/)?(sh|bash|dash)( -s)?( \w+)?")
_MOVING = {
    "time": rb"^date (\d+)$",
    "uptime": rb"^(?:uptime )?(\d+\.\d\d) \d+\.\d\d$",
    "load": rb"^(?:load )?(\d+\.\d\d) \d+\.\d\d \d+\.\d\d \d+/|load average: (\d+\.\d\d)",
    "busy": rb"^cpu +(\d+) ",
    "idle": rb"^cpu +\d+ \d+ \d+ (\d+)",
    "memory": rb"^Mem(?:Free|Available): +(\d+)",
    "count": rb"^processes (\d+)|^ *\w+: *(\d+) +\d+ +\d+|^\w+ (\d+)(?: +\d+){9}",
    "blocks": rb"^local \d+ \d+ \d+ (\d+)",
}
"""The numbers that are not the same in the next answer, by how they move."""


class Answer:
    """What a command prints, once as this machine does, and then for every host and request anew."""

    def __init__(self, text: bytes):
        self._began = time.time()
        found = [
            (match.span(match.lastindex or 0), kind)
            for kind, pattern in _MOVING.items()
            for match in re.finditer(pattern, text, re.MULTILINE)
        ]
        self._parts: list[bytes] = []
        self._slots: list[tuple[int, str, float]] = []
        last = 0
        for (begin, end), kind in sorted(found):
            self._parts += [text[last:begin], text[begin:end]]
            self._slots.append((len(self._parts) - 1, kind, float(text[begin:end])))
            last = end
        self._parts.append(text[last:])

    def render(self, names: list[tuple[bytes, bytes]]) -> bytes:
        """The output, with each of `names` replaced by the host's own."""
        passed = time.time() - self._began
        parts = list(self._parts)
        for index, kind, value in self._slots:
            parts[index] = _moved(kind, value, passed)
        text = b"".join(parts)
        for real, own in names:
            text = text.replace(real, own)
        return text


def _moved(kind: str, value: float, passed: float) -> bytes:
    """A number as it may be `passed` seconds later. What counts up never counts down."""
    match kind:
        case "time":
            return b"%d" % int(value + passed)
        case "uptime":
            return b"%.2f" % (value + passed)
        case "load":
            return b"%.2f" % random.uniform(0, 0.5)
        case "busy":
            return b"%d" % int(value + 20 * passed)
        case "idle":
            return b"%d" % int(value + 180 * passed)
        case "memory" | "blocks":
            return b"%d" % int(value * random.uniform(0.97, 1))
        case _:
            return b"%d" % int(value + 1000 * passed + random.uniform(0, 100))


@dataclass
class Seen:
    """What one host has seen since it was asked last."""

    connections: int = 0
    sessions: int = 0
    most_sessions: int = 0
    """At one time."""
    polls: list[float] = field(default_factory=list)
    """When it answered a probe in full; by the monotonic clock, in seconds."""


class Host:
    """One machine."""

    def __init__(self, number: int, identities: list[bytes]):
        self.name = f"lab-{number:05}"
        self.address = f"127.20.{number // 250}.{number % 250 + 1}"
        self.hangs = ""
        self.seen = Seen()
        self._open_sessions = 0
        self.names = [(real, self._own(real)) for real in identities]

    def _own(self, real: bytes) -> bytes:
        own = uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}/{real.decode()}")
        if re.fullmatch(rb"[0-9a-f]{32}", real):
            return own.hex.encode()
        if re.fullmatch(rb"[0-9a-fA-F-]{36}", real):
            return str(own).encode()
        return self.name.encode()

    def begin_session(self) -> None:
        self._open_sessions += 1
        self.seen.sessions += 1
        self.seen.most_sessions = max(self.seen.most_sessions, self._open_sessions)

    def end_session(self) -> None:
        self._open_sessions -= 1

    def take_seen(self) -> Seen:
        """What it has seen; from now on it counts anew."""
        seen, self.seen = self.seen, Seen(most_sessions=self._open_sessions)
        return seen


class Lab:
    """All hosts, and what they answer."""

    def __init__(self, hosts: int, hang: float):
        self.answers = {command: Answer(_output(command)) for command in _PLAIN}
        self.probe = Answer(_output(f"sh {PROBE}" if PROBE.exists() else "; ".join(_PLAIN)))
        identities = _identities()
        self.hosts = [Host(number, identities) for number in range(hosts)]
        hanging = [
            host for number, host in enumerate(self.hosts) if int((number + 1) * hang) > int(number * hang)
        ]
        for number, host in enumerate(hanging):
            host.hangs = ("silent", "stalls")[number % 2]
        self.by_address = {host.address: host for host in self.hosts}

    def report(self) -> str:
        """What every host has seen since the last report."""
        return json.dumps({host.name: asdict(host.take_seen()) for host in self.hosts})


class _Session(asyncssh.SSHServerSession[bytes]):
    """One command: its answer, at once, or when a script that comes on standard input has come.

    A script goes on to answer each line, as the probe does.
    """

    def __init__(self, lab: Lab, host: Host):
        self._lab = lab
        self._host = host
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._command = ""
        self._missing = len(SCRIPT)

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def session_started(self) -> None:
        self._host.begin_session()
        if not _READS_INPUT.fullmatch(self._command.strip()):
            self._answer()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002 - as in asyncssh
        if self._missing > 0:
            self._missing -= len(data)
            if self._missing <= 0:
                self._answer()
        elif data.endswith(b"\n"):
            self._answer()

    def _answer(self) -> None:
        assert self._channel is not None
        plain = self._lab.answers.get(self._command)
        text = (plain or self._lab.probe).render(self._host.names)
        if self._host.hangs:
            self._channel.write(text[: len(text) // 2])
            return
        self._channel.write(text)
        if plain is not None:
            self._channel.exit(0)
        else:
            self._host.seen.polls.append(time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh names it so
        self._host.end_session()


class _Server(asyncssh.SSHServer):
    """One connection. Which host it is for, the address tells."""

    def __init__(self, lab: Lab):
        self._lab = lab
        self._host: Host | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._host = self._lab.by_address[conn.get_extra_info("sockname")[0]]
        self._host.seen.connections += 1

    def session_requested(self) -> _Session:
        assert self._host is not None
        return _Session(self._lab, self._host)


def _output(command: str) -> bytes:
    return subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30
    ).stdout


def _identities() -> list[bytes]:
    """By what this machine can be known."""
    found = []
    for path in _IDENTITY_FILES:
        try:
            value = Path(path).read_bytes().strip()
        except OSError:
            continue
        if len(value) > 3 and value not in found:
            found.append(value)
    return found


def _write_access(
    folder: Path, lab: Lab, port: int, client: asyncssh.SSHKey, server: asyncssh.SSHKey
) -> None:
    """What a client needs to get in: a key, the hosts' keys and their addresses."""
    key_file = folder / "client_key"
    key_file.touch(0o600)
    key_file.write_bytes(client.export_private_key())
    public = server.export_public_key().decode().strip()
    (folder / "known_hosts").write_text(
        "".join(f"[{host.address}]:{port} {public}\n" for host in lab.hosts), encoding="ascii"
    )
    hostvars = {
        host.name: {
            "ansible_host": host.address,
            "ansible_port": port,
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(key_file),
        }
        for host in lab.hosts
    }
    inventory = {
        "_meta": {"hostvars": hostvars},
        "all": {"children": ["ungrouped"]},
        "ungrouped": {"hosts": list(hostvars)},
    }
    (folder / "inventory.json").write_text(json.dumps(inventory), encoding="ascii")


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass
    writer.close()


async def _serve(options: argparse.Namespace) -> None:
    lab = Lab(options.hosts, options.hang)
    client, server = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    ssh_options = asyncssh.SSHServerConnectionOptions(
        server_factory=lambda: _Server(lab),
        server_host_keys=[server],
        authorized_client_keys=asyncssh.import_authorized_keys(client.export_public_key().decode()),
        encoding=None,
        line_editor=False,
    )
    listeners: list[Any] = []
    port = 0
    for host in lab.hosts:
        listening = socket.create_server((host.address, port), backlog=16)
        port = listening.getsockname()[1]
        if host.hangs == "silent":
            listeners.append(await asyncio.start_server(_say_nothing, sock=listening))
        else:
            listeners.append(await asyncssh.listen(sock=listening, options=ssh_options))
    _write_access(options.folder, lab, port, client, server)
    hanging = [host.name for host in lab.hosts if host.hangs]
    print(json.dumps({"port": port, "hosts": len(lab.hosts), "hanging": hanging}), flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_reader(sys.stdin, _answer_line, lab, ended)
    await ended.wait()
    print(lab.report(), flush=True)


def _answer_line(lab: Lab, ended: asyncio.Event) -> None:
    if sys.stdin.readline():
        print(lab.report(), flush=True)
    else:  # whoever started this is gone
        ended.set()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where keys and inventory are written")
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--hang", type=float, default=0.0, metavar="SHARE", help="of the hosts, such as 0.05")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncssh.set_log_level("CRITICAL")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
