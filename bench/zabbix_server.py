"""A private Zabbix server for a benchmark: its own folder, port and database, gone afterwards.

Everything is as Debian's packages have it, except what keeps it from being starved (`_ROOMY`).
Only zabbix_sender feeds it, which sends 250 values a connection.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bench.stream import LAYOUT
from bench.usage import family_cpu_seconds
from tests.mariadb_server import MariadbServer
from tests.ports import free_ports

_SCHEMA = Path("/usr/share/zabbix-server-mysql")
_SERVER, _SENDER = "zabbix_server", "zabbix_sender"
_DATABASE = "zabbix"
_HISTORY = ("history", "history_uint", "history_str", "history_log", "history_text")
_TRAPPER, _FLOAT, _UNSIGNED = 2, 0, 3  # of items.type and items.value_type
_DISCARD_UNCHANGED_WITH_HEARTBEAT = 20  # of item_preproc.type
_FIRST_HOST, _FIRST_ITEM = 1_000_000, 10_000_000  # beyond those of the templates
_SENDERS = 4
_VARIANTS = 4  # different values of each item, sent in turns
# Of the history cache, and of values before it: above, nothing more is sent for a while.
_FULL_PERCENT, _FULL_VALUES = 50.0, 200_000
_PATIENCE = 120.0  # seconds

_ROOMY = {
    "StartTrappers": 8,  # 5: two for each sender
    "StartDBSyncers": 8,  # 4, which wait for the disk while a core has nothing to do
    "HistoryCacheSize": "128M",  # 16M
    "HistoryIndexCacheSize": "64M",  # 4M
    "TrendCacheSize": "64M",  # 4M
    "CacheSize": "256M",  # 32M
    "ValueCacheSize": "64M",  # 8M
}
"""What differs from a new installation, where it has what the comment says."""

SERIES = tuple(
    (f"{measurement.name}[{check.key.instance}]", _FLOAT if measurement.unit == "1" else _UNSIGNED)
    for check in LAYOUT.checks
    for measurement in check.measurements
)
"""Key and value type of a host's items: what `bench.load` reports, 24 of either type."""


def missing_parts() -> str:
    """What keeps a Zabbix server from being started here; empty when nothing does."""
    missing = [program for program in (_SERVER, _SENDER, "mariadb") if _program(program) is None]
    if not missing and (_SCHEMA / "schema.sql.gz").exists():
        return ""
    what = ", ".join(missing) or str(_SCHEMA)
    return (
        f"{what} not found; run: apt-get install --no-install-recommends "
        "zabbix-server-mysql zabbix-agent mariadb-server"  # Debian has zabbix_sender in zabbix-agent
    )


class Queue(NamedTuple):
    """What Zabbix has taken in and not yet stored: percent of its history cache, values before that."""

    cache: float
    preprocessing: int

    @property
    def is_empty(self) -> bool:
        return self.cache < 0.01 and self.preprocessing == 0

    @property
    def is_full(self) -> bool:
        return self.cache > _FULL_PERCENT or self.preprocessing > _FULL_VALUES


class Fed(NamedTuple):
    """What a load has been."""

    values: int
    fullest: float  # percent of the history cache, at its worst
    drain_seconds: float


class ZabbixServer:
    """One that runs, with `hosts` hosts of 48 items each."""

    def __init__(self, database: MariadbServer, hosts: int, folder: Path, port: int, pid: int):
        self._database = database
        self._hosts = hosts
        self._folder = folder
        self._port = port
        self._pid = pid

    def cpu_seconds(self) -> float:
        """What all its processes have used so far."""
        return family_cpu_seconds(self._pid)

    def queue(self) -> Queue:
        said = self._stats()
        return Queue(said["wcache"]["history"]["pused"], said["preprocessing_queue"])

    def stored(self) -> int:
        """The rows of its history tables."""
        return sum(
            self._database.query(f"SELECT COUNT(*) FROM {table}", database=_DATABASE)[0][0]
            for table in _HISTORY
        )

    def feed(self, seconds: float, *, changing: bool) -> Fed:
        """Send values for `seconds`, every item's in turn, and wait until all of them are stored.

        What waits in Zabbix is bounded, as it is in a collector: when its queue is full, senders wait.
        """
        deadline = time.monotonic() + seconds
        go = threading.Event()
        fullest = 0.0
        with ThreadPoolExecutor(_SENDERS) as senders:
            running = [
                senders.submit(self._send, files, go, deadline)
                for files in self._values(_VARIANTS if changing else 1)
            ]
            try:
                while not all(sender.done() for sender in running):
                    waiting = self.queue()
                    fullest = max(fullest, waiting.cache)
                    if waiting.is_full and time.monotonic() < deadline:
                        go.clear()
                    else:
                        go.set()
                    time.sleep(0.5)
            finally:
                go.set()  # nobody waits for what does not come
            sent = sum(sender.result() for sender in running)
        return Fed(sent, fullest, self._drain())

    def _drain(self) -> float:
        """Wait until everything is stored; seconds."""
        began = time.monotonic()
        while not self.queue().is_empty:
            if time.monotonic() > began + _PATIENCE:
                raise SystemExit(f"Zabbix does not store what it was sent: {self.queue()}")
            time.sleep(0.2)
        return time.monotonic() - began

    def _send(self, files: Sequence[Path], go: threading.Event, deadline: float) -> int:
        """Run one zabbix_sender after the other; how many values they sent."""
        sent = 0
        for file in cycle(files):
            go.wait()
            if time.monotonic() > deadline:
                break
            command = [str(_program(_SENDER)), "-z", "127.0.0.1", "-p", str(self._port), "-i", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"zabbix_sender failed: {done.stdout[-500:]}{done.stderr[-500:]}")
            sent += self._hosts // _SENDERS * len(SERIES)
        return sent

    def _values(self, variants: int) -> Iterator[list[Path]]:
        """What each sender sends: a value of each item of its hosts a file."""
        share = self._hosts // _SENDERS
        for sender in range(_SENDERS):
            files = [self._folder / f"values-{sender}-{variant}" for variant in range(variants)]
            for variant, file in enumerate(files):
                random = Random(f"{sender}/{variant}")
                with file.open("w") as out:
                    for host in range(sender * share, (sender + 1) * share):
                        for key, kind in SERIES:
                            value = random.uniform(0.1, 0.6) if kind == _FLOAT else random.randrange(2**40)
                            out.write(f"bench-{host} {key} {value}\n")
            yield files

    def _stats(self) -> dict[str, Any]:
        """Its own figures, by its own protocol."""
        request = json.dumps({"request": "zabbix.stats"}).encode()
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(b"ZBXD\x01" + struct.pack("<Q", len(request)) + request)
            answer = connection.makefile("rb").read()
        said: dict[str, Any] = json.loads(answer[13:])["data"]
        return said


def load_schema(database: MariadbServer, hosts: int) -> None:
    """Make Zabbix's database as its manual says, then hosts with trapper items and nothing else to watch."""
    database.query(f"CREATE DATABASE {_DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    database.query("CREATE USER zabbix@'127.0.0.1'")
    database.query(f"GRANT ALL ON {_DATABASE}.* TO zabbix@'127.0.0.1'")
    database.query("SET GLOBAL log_bin_trust_function_creators = 1")
    client = [str(_program("mariadb")), "--no-defaults", f"--socket={database.socket}", "--user=root"]
    for part in ("schema", "images", "data"):
        with gzip.open(_SCHEMA / f"{part}.sql.gz") as sql:
            subprocess.run(
                [*client, "--default-character-set=utf8mb4", _DATABASE], input=sql.read(), check=True
            )
    database.query("SET GLOBAL log_bin_trust_function_creators = 0")
    for statement in _hosts_and_items(hosts):
        database.query(statement, database=_DATABASE)


def discard_unchanged(database: MariadbServer) -> None:
    """Have Zabbix store a value only if it differs from the one before, or an hour later."""
    database.query(
        "INSERT INTO item_preproc (item_preprocid, itemid, step, type, params) "
        f"SELECT itemid, itemid, 1, {_DISCARD_UNCHANGED_WITH_HEARTBEAT}, '1h' "
        f"FROM items WHERE itemid >= {_FIRST_ITEM}",
        database=_DATABASE,
    )


def _hosts_and_items(hosts: int) -> Iterator[str]:
    yield "UPDATE hosts SET status = 1 WHERE status = 0"
    everyone = f"seq_0_to_{hosts - 1}"
    yield (
        "INSERT INTO hosts (hostid, host, name, description) "
        f"SELECT {_FIRST_HOST} + seq, CONCAT('bench-', seq), CONCAT('bench-', seq), '' FROM {everyone}"
    )
    for number, (key, kind) in enumerate(SERIES):
        itemid = f"{_FIRST_ITEM} + seq * {len(SERIES)} + {number}"
        yield (
            "INSERT INTO items (itemid, type, hostid, name, key_, value_type, params, description, posts, headers) "
            f"SELECT {itemid}, {_TRAPPER}, {_FIRST_HOST} + seq, '{key}', '{key}', {kind}, '', '', '', '' "
            f"FROM {everyone}"
        )
    yield f"INSERT INTO item_rtdata (itemid) SELECT itemid FROM items WHERE itemid >= {_FIRST_ITEM}"


@contextmanager
def zabbix_server(database: MariadbServer, hosts: int) -> Iterator[ZabbixServer]:
    """A server that has begun to listen, with no history yet."""
    for table in _HISTORY:
        database.query(f"TRUNCATE TABLE {table}", database=_DATABASE)
    folder = Path(tempfile.mkdtemp(prefix="fp-zbx-"))
    try:
        port, _ = free_ports()
        settings = folder / "zabbix_server.conf"
        settings.write_text(_settings(folder, port, database.port))
        command = [str(_program(_SERVER)), "--foreground", "--config", str(settings)]
        with (folder / "log").open("wb") as log, _as_nobody(folder, command, log) as process:
            try:
                server = ZabbixServer(database, hosts, folder, port, process.pid)
                _wait_until_it_listens(server, process, folder)
                yield server
            finally:
                process.terminate()
                process.wait(_PATIENCE)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _as_nobody(folder: Path, command: list[str], log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run it without any right of root's; a family is ended by its parent."""
    options: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
        options = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with subprocess.Popen(command, stdout=log, stderr=log, **options) as process:
        yield process


def _settings(folder: Path, port: int, database_port: int) -> str:
    settings = {
        "ListenIP": "127.0.0.1",
        "ListenPort": port,
        "StatsAllowedIP": "127.0.0.1",
        "LogType": "console",
        "PidFile": folder / "pid",
        "SocketDir": folder,
        "DBHost": "127.0.0.1",
        "DBPort": database_port,
        "DBName": _DATABASE,
        "DBUser": "zabbix",
        "AllowUnsupportedDBVersions": 1,
        "FpingLocation": "/usr/bin/fping",
        "Timeout": 4,
        "LogSlowQueries": 3000,
        **_ROOMY,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _wait_until_it_listens(server: ZabbixServer, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            server.queue()
        except (OSError, ValueError):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "log").read_text(errors="replace")
                raise SystemExit(f"the Zabbix server does not start:\n{said[-4000:]}") from None
            time.sleep(0.1)
        else:
            return


def _program(name: str) -> str | None:
    # Debian keeps servers in a folder that is not on everybody's PATH.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
