"""Everything that runs in a soak: a database server, a collector, many agents, and networks between them."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.mariadb_server import UPGRADE, MariadbServer, database_of, missing_disk
from tests.processes import ROOT, Program, Site, clean_environ
from tests.relay import Relay
from tests.soak.hive import MEASUREMENT
from tests.soak.ledger import ENTER, LEAVE, LEVEL, Change, Ledger
from tests.soak.stored import CHANGES, MARKS, numbers_of, read_changes, read_marks

POOL_SIZE = 8
RULE = f"""
[[rule]]
check = "{LEVEL}"
measurement = "{MEASUREMENT}"
critical = {ENTER}
critical_clear = {LEAVE}
"""
"""By which the simulated hosts are judged, as the ledger takes for granted."""


@dataclass(frozen=True)
class Size:
    """How much of everything. Durations in seconds."""

    hosts: int = 200
    hives: int = 10
    programs: int = 4
    """Of the agent itself, with its own checks."""
    interval: float = 1.0
    ttl: float = 60.0

    @property
    def host_lifetime(self) -> float:
        """Of a host's certificate.

        As short as can be: a third of it is left when it should be renewed, and a host that is dead for
        longer than its time-to-live, and until that was announced, must be let in again.
        """
        return 4.5 * self.ttl


class Hive:
    """A process with many agents, and its own network to the collector."""

    def __init__(self, number: int, size: Size, site: Site, seed: int, stack: ExitStack):
        folder = site.folder
        each = size.hosts // size.hives
        self.hosts = range(number * each + 1, (number + 1) * each + 1)
        self.relay = stack.enter_context(Relay(site.address))
        self.ledger_path = folder / f"ledger-{self.hosts.start}.jsonl"
        self._log: IO[bytes] = stack.enter_context((folder / f"hive-{number}.log").open("ab"))
        self._command = [
            *(sys.executable, "-m", "tests.soak.hive"),
            *("--collector", self.relay.address, "--folder", str(folder)),
            *("--first", str(self.hosts.start), "--hosts", str(each)),
            *("--interval", str(size.interval), "--ttl", str(size.ttl), "--seed", str(seed)),
            *site.enrolment_options(),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        stack.callback(self.kill)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Begin to start; `wait_ready` says when its agents live."""
        self._process = subprocess.Popen(
            self._command,
            env=clean_environ({"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "GRPC_VERBOSITY": "NONE"}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def wait_ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", f"see {self._log.name}"

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.communicate()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def tell(self, command: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def wait(self, seconds: float) -> int:
        assert self._process is not None
        return self._process.wait(seconds)


class World:
    """All of it, running; gone with `stack`."""

    def __init__(self, size: Size, folder: Path, seed: int, stack: ExitStack):
        self.size = size
        self.folder = folder
        self.has_own_disk = not missing_disk()
        # Hundreds of connections are left for those who crowd the server.
        self.server = stack.enter_context(
            MariadbServer("--max-connections=60", disk="1G" if self.has_own_disk else "")
        )
        url = self.server.fresh_database()
        self.database = database_of(url)
        self.site = Site(
            # A place more than the pool has is refused, and the collector's log tells.
            self.server.account(url, connections=POOL_SIZE),
            folder,
            stack,
            self.server.account(url, "upgrader", like=UPGRADE),
        )
        self.site.upgrade()
        (folder / "rules.toml").write_text(f"builtin = false\n{RULE}")
        self.collector: Program = self.start_collector()
        self.ledger = Ledger()
        self.hives = [Hive(number, size, self.site, seed, stack) for number in range(size.hives)]
        self._read: dict[Path, int] = {}
        for hive in self.hives:
            hive.launch()
        for hive in self.hives:
            hive.wait_ready()
        token = self.site.token("--uses", str(size.programs))
        for number in range(size.programs):
            self.site.enroll(f"agent-{number}", token=token)
        self.programs = [self.start_program(number) for number in range(size.programs)]
        self.deaths: dict[int, int] = {}
        """How often each host was dead for longer than its time-to-live."""

    def start_collector(self) -> Program:
        """On the same port as before."""
        self.collector = self.site.collector(
            upgrade=False,
            tls="on",
            pool_size=str(POOL_SIZE),
            rules=str(self.folder / "rules.toml"),
            identity_host_lifetime=f"{self.size.host_lifetime:g}s",
        )
        return self.collector

    def start_program(self, number: int) -> Program:
        """One real agent."""
        return self.site.agent(
            f"agent-{number}", interval=f"{self.size.interval:g}s", ttl=f"{self.size.ttl:g}s"
        )

    def start_attack(self, name: str) -> Program:
        """One of `bench.attackers`, until it is killed."""
        command = [sys.executable, "-m", "bench.attackers", name, "--collector", self.site.address]
        return self.site.start(
            f"attack-{name}", [*command, "--seconds", "600", *self.site.enrolment_options()]
        )

    def read_ledgers(self) -> None:
        """Take in what the agents have written down since the last time."""
        for hive in self.hives:
            path = hive.ledger_path
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                self.ledger.note(line.decode())

    def query(self, sql: str, *parameters: object) -> list[tuple[object, ...]] | None:
        """What the database answers within a few seconds, else None."""
        try:
            connection = self.server.connect(self.database, connect_timeout=2, read_timeout=5)
        except Exception:  # noqa: BLE001 - that is what faults are for
            return None
        try:
            cursor = connection.cursor()
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())
        except Exception:  # noqa: BLE001
            return None
        finally:
            with suppress(Exception):
                connection.close()

    def marks(self) -> dict[int, tuple[int, int]] | None:
        """(epoch, seq) by host as the database has it; None while it does not answer."""
        rows = self.query(MARKS)
        return None if rows is None else read_marks(rows, self._numbers())

    def connections(self) -> int:
        """How many the collector has now, by the server's own word; 0 while it says nothing."""
        rows = self.query("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE user = 'fleet'")
        return int(str(rows[0][0])) if rows else 0

    def is_alone(self) -> bool:
        """Whether the server counts nobody but the collector and who asks."""
        rows = self.query("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
        return rows is not None and int(str(rows[0][1])) <= self.connections() + 1

    def refused_connections(self) -> int:
        """How often a collector wanted one more connection than its account may have."""
        logs = self.folder.glob("*-collector.log")
        return sum(log.read_text(errors="replace").count("max_user_connections") for log in logs)

    def most_connections(self) -> int:
        """The server's Max_used_connections since the last call, without the one that asks."""
        rows = self.query("SHOW GLOBAL STATUS LIKE 'Max_used_connections'")
        assert self.query("FLUSH STATUS") is not None or rows is None
        return int(str(rows[0][1])) - 1 if rows else 0

    def renewals(self) -> int:
        """How many certificates were renewed."""
        rows = self.query("SELECT COUNT(*) FROM event WHERE kind = 'renewed'")
        assert rows is not None
        return int(str(rows[0][0]))

    def rotate_ca(self) -> None:
        """Begin to change the CA."""
        self.site.cli("ca", "rotate", check=True)

    def finish_ca(self) -> bool:
        """End the change of the CA if nobody needs the old one any more; whether it is over.

        Attackers that are gone will not renew; an admin would remove them.
        """
        gone = self.query("SELECT host_id FROM host WHERE hostname LIKE 'attacker-%%'")
        if gone:
            self.site.cli("remove", "--yes", *[str(row[0]) for row in gone])
        return self.site.cli("ca", "finish").returncode == 0

    def stored_changes(self) -> dict[int, list[Change]]:
        """Every host's events in order, but for the renewals: those follow certificates, not reports."""
        rows = self.query(CHANGES)
        assert rows is not None
        return read_changes(rows, self._numbers())

    def _numbers(self) -> dict[str, int]:
        return numbers_of(number for hive in self.hives for number in hive.hosts)
