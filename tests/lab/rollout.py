"""Real machines, an inventory of them, and what the playbooks in deploy/ansible do with them.

h1 is the collector, with nothing of ours on it before; the others are to have agents, but for the last, whose
Python is too old. Ansible runs in the hub, as an admin's machine would.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb

from tests.lab import releases
from tests.lab.machines import USER, Lab, Machine
from tests.namespaces import run
from tests.processes import ROOT, clean_environ, wait_until
from tests.soak.ledger import Ledger, compare_changes, expected_changes
from tests.soak.stored import CHANGES, MARKS, numbers_of, read_changes, read_marks
from tests.soak.world import RULE

PORT = 18443
_PASSWORDS = {
    "fleetpulse_database_password": "pass'word 1",
    "fleetpulse_database_upgrade_password": 'pass"\\word 2',
}
_PLAYBOOKS = ROOT / "deploy" / "ansible"
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
_SOCKET = "run/mysqld/mysqld.sock"
_CLI = "/usr/local/bin/collector-cli"
_FIRST = 1000  # number of the first simulated host


class Played(NamedTuple):
    """What a playbook did: exit code, output, seconds that it took, and of the CPU of Ansible and its ssh."""

    code: int
    output: str
    seconds: float
    cpu_seconds: float

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by machine."""
        return {found[1]: int(found[3]) for found in _RECAP.finditer(self.output)}

    @property
    def failed(self) -> list[str]:
        """The machines on which a task failed."""
        return [found[1] for found in _RECAP.finditer(self.output) if int(found[5])]


class Step(NamedTuple):
    """What was done, and how long it took, in seconds; `note` is what was measured."""

    name: str
    seconds: float
    note: str


class Site:
    """A lab whose machines are managed by Ansible. `database` is the machine with MariaDB."""

    def __init__(self, lab: Lab, folder: Path, database: str):
        self.lab = lab
        self.folder = folder
        self.dist = folder / "dist"
        self.collector = lab["h1"]
        self.database = lab[database]
        self.old = lab.machines[-1]
        self.agents = lab.machines[1:-1]
        self.steps: list[Step] = []
        self.printed = ""
        """All that Ansible has printed."""
        self._agent_version = releases.PREVIOUS
        self._passwords = _PASSWORDS
        self._inventory = folder / "inventory.json"
        self._rules = folder / "rules.toml"
        self._rules.write_text(RULE)
        self._write_inventory()

    @property
    def agent_version(self) -> str:
        """The release of the agent that the inventory wants."""
        return self._agent_version

    @agent_version.setter
    def agent_version(self, version: str) -> None:
        self._agent_version = version
        self._write_inventory()

    @property
    def passwords(self) -> dict[str, str]:
        """Of the database's accounts, by variable."""
        return self._passwords

    @passwords.setter
    def passwords(self, passwords: dict[str, str]) -> None:
        self._passwords = passwords
        self._write_inventory()

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Note how long it takes; what is put into the list is noted with it."""
        began = time.monotonic()
        notes: list[str] = []
        yield notes
        self.steps.append(Step(name, time.monotonic() - began, "; ".join(notes)))

    @property
    def summary(self) -> str:
        """The steps and their times, a line each."""
        return "\n".join(f"{step.seconds:7.1f} s  {step.name:44} {step.note}".rstrip() for step in self.steps)

    def play(self, playbook: str, *options: str, check: bool = True, **variables: object) -> Played:
        """Run a playbook in the hub."""
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            *("-i", str(self._inventory), f"{playbook}.yml", *options),
            *("-e", json.dumps({"fleetpulse_dist": str(self.dist), **variables})),
        ]
        environ = clean_environ({"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_HOME": str(self.folder / "ansible")})
        before = _cpu_seconds()
        began = time.monotonic()
        done = subprocess.run(
            self.lab.command(*command),
            cwd=_PLAYBOOKS,
            env=environ,
            capture_output=True,
            text=True,
            timeout=900,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        output = done.stdout + done.stderr
        self.printed += output
        with (self.folder / "ansible.log").open("a") as log:
            log.write(f"\n$ {playbook} {options} {variables}\n{output}")
        assert not check or done.returncode == 0, f"{playbook}: {done.returncode}\n{output[-6000:]}"
        return Played(done.returncode, output, time.monotonic() - began, _cpu_seconds() - before)

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run collector-cli on the collector, as root there."""
        return self.collector.exec(_CLI, *arguments, **options)

    def json(self, *arguments: str) -> Any:
        """What a command of collector-cli prints with --json, whatever its exit code."""
        return json.loads(self.cli(*arguments, "--json", check=False).stdout)

    def wait_for_reports(self, machines: Sequence[Machine], seconds: float = 60) -> None:
        """Wait until a report of each is stored that was not when this was called."""
        before = self.marks()
        wait_until(
            lambda: all(self.marks()[machine.name] > before[machine.name] for machine in machines),
            seconds=seconds,
            what=f"{[machine.name for machine in machines]} report",
        )

    def versions(self) -> dict[str, str]:
        """Which release each agent runs, by its link."""
        return {machine.name: self._release(machine, "agent") for machine in self.agents}

    def collector_version(self) -> str:
        """Which release the collector runs."""
        return self._release(self.collector, "collector")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What the database answers to its administrator."""
        socket = f"/proc/{self.database.leader}/root/{_SOCKET}"
        connection = MySQLdb.connect(unix_socket=socket, user="root", database="fleetpulse")
        try:
            cursor = connection.cursor()
            cursor.execute(sql)
            return list(cursor.fetchall())
        finally:
            connection.close()

    def marks(self) -> dict[str, tuple[int, int]]:
        """(epoch, seq) of every host's newest report that is stored, by its name."""
        rows = self.query("SELECT h.hostname, s.epoch, s.seq FROM host h JOIN host_seen s ON s.host = h.id")
        return {str(name): (epoch, seq) for name, epoch, seq in rows}

    def events(self, *kinds: str) -> list[tuple[str, str]]:
        """(kind, name) of all events of these kinds."""
        return [
            (str(kind), str(name))
            for kind, name in self.query("SELECT kind, hostname FROM event")
            if kind in kinds
        ]

    @contextmanager
    def load(self, hosts: int) -> Iterator[None]:
        """Simulated hosts report all the while; then each of their reports must be in the database, once."""
        token = self.folder / "token"
        token.write_text(self.cli("token", "create", "--uses", str(hosts), "--group", "simulated").stdout)
        folder = Path(tempfile.mkdtemp(prefix="hive-", dir=self.folder))
        address = self.collector.address
        command = [
            *(sys.executable, "-m", "tests.soak.hive", "--collector", f"{address}:{PORT}"),
            *("--folder", str(folder), "--first", str(_FIRST), "--hosts", str(hosts)),
            *("--interval", "0.5", "--ttl", "60", "--enroll", f"{address}:{PORT + 1}"),
            *("--token-file", str(token), "--ca-fingerprint", self.json("ca", "show")["fingerprint"]),
            *("--state-dir", str(folder / "state")),
        ]
        environ = clean_environ({"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "GRPC_VERBOSITY": "NONE"})
        with (
            (folder / "log").open("ab") as log,
            subprocess.Popen(
                self.lab.command(*command),
                cwd=ROOT,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                assert process.stdin is not None
                assert process.stdout.readline() == b"ready\n", (folder / "log").read_text()
                yield
                process.stdin.write(b"drain\n")
                process.stdin.flush()
                assert process.wait(60) == 0
            finally:
                process.kill()
        self._compare(folder / f"ledger-{_FIRST}.jsonl", hosts)

    def _compare(self, ledger_file: Path, hosts: int) -> None:
        ledger = Ledger()
        for line in ledger_file.read_text().splitlines():
            ledger.note(line)
        numbers = numbers_of(range(_FIRST, _FIRST + hosts))
        marks = read_marks(self.query(MARKS), numbers)
        stored = read_changes(self.query(CHANGES), numbers)
        assert len(ledger.hosts) == hosts
        for number, host in ledger.hosts.items():
            assert marks[number] == host.mark
            found = compare_changes(number, expected_changes(host.made), stored[number])
            assert not found.lost
            assert not found.duplicated
        self.cli("remove", "--yes", *numbers)

    def forget_host_key(self, machine: Machine) -> None:
        """The admin knows that a machine was installed anew, and has another key."""
        known = self.lab.known_hosts
        lines = [line for line in known.read_text().splitlines() if line.split()[0] != machine.address]
        known.write_text("\n".join([*lines, machine.host_key_line]) + "\n")

    def close(self) -> None:
        """End what Ansible keeps open."""
        pids = run("ip", "netns", "pids", Path(self.lab.namespace).name, check=False).stdout.split()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), 15)

    def _write_inventory(self) -> None:
        everybody = {machine.name: {"ansible_host": machine.address} for machine in self.lab.machines}
        managed = [machine.name for machine in (*self.agents, self.old)]
        inventory = {
            "all": {
                "hosts": everybody,
                "vars": {
                    "ansible_user": USER,
                    "ansible_ssh_private_key_file": str(self.lab.client_key),
                    "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.lab.known_hosts}",
                    "ansible_control_path_dir": str(self.folder / "cp"),
                    "fleetpulse_rules": str(self._rules),
                    "fleetpulse_collector_config": {"ssh": {"interval": "2s", "fallback_interval": "2s"}},
                    **self._passwords,
                },
            },
            "fleetpulse_collector": {"hosts": {self.collector.name: {}}},
            "fleetpulse_database": {"hosts": {self.database.name: {}}},
            "fleetpulse_agents": {
                "children": {
                    "odd": {"hosts": {name: {} for name in managed[::2]}},
                    "even": {"hosts": {name: {} for name in managed[1::2]}},
                },
                "vars": {
                    "fleetpulse_agent_config": {"interval": "1s", "ttl": "5s", "groups": ["labs"]},
                    "fleetpulse_labels": {"site": "berlin"},
                    "fleetpulse_version": self._agent_version,
                },
            },
        }
        self._inventory.write_text(json.dumps(inventory))

    @staticmethod
    def _release(machine: Machine, program: str) -> str:
        link = machine.exec("readlink", f"/opt/fleetpulse/{program}/current", check=False).stdout
        return str(link).strip().removeprefix("releases/")


def make_old(machine: Machine) -> None:
    """Take the machine's Python away, as if its distribution had none that is new enough."""
    machine.exec("sh", "-c", "chmod 000 /usr/bin/python3.[0-9]*")


def make_strict(machine: Machine) -> None:
    """Have root's new files closed to others, as hardening guides want it."""
    line = "Defaults umask=0077, umask_override"
    machine.exec("sh", "-c", f"echo '{line}' >/etc/sudoers.d/umask && chmod 440 /etc/sudoers.d/umask")


def traces(machine: Machine) -> dict[str, set[str]]:
    """What an installation leaves on a machine: files, accounts, units."""
    places = "/etc /opt /usr /var /root /srv"
    # What systemd, sshd and those who log in leave, and the cache of the system's Python.
    passing = (
        r"-path /var/log -o -path /var/cache -o -path /var/tmp -o -path /var/lib/systemd -o -path /etc/ssh"
        r" -o -name __pycache__"
    )
    found = machine.exec("sh", "-c", rf"find {places} -xdev \( {passing} \) -prune -o -print").stdout
    return {
        "files": set(found.splitlines()),
        "accounts": set(machine.exec("cut", "-d:", "-f1", "/etc/passwd", "/etc/group").stdout.split()),
        "units": set(
            machine.exec(
                "systemctl", "list-units", "--all", "--plain", "--no-legend", "*fleet*"
            ).stdout.splitlines()
        ),
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
