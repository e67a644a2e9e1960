"""A private MariaDB server for tests: its own folder, socket and port, gone afterwards."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.ports import free_ports

PROGRAMS = ("mariadbd", "mariadb-install-db")
SERVICE, UPGRADE = "fleetpulse", "fleetpulse_upgrade"
"""The accounts that docs/security.md has an administrator make."""

_DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"


def documented_privileges() -> dict[str, str]:
    """What docs/security.md grants to each account, as a GRANT statement lists it."""
    [sql] = re.findall(r"^```sql\n(.+?)^```", _DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    granted = re.findall(r"^GRANT ([A-Z, ]+) ON fleetpulse\.\* TO (\w+)@localhost;$", sql, re.MULTILINE)
    assert sql.count("GRANT ") == len(granted), "a GRANT that the tests do not understand"
    return {account: privileges for privileges, account in granted}


def missing_parts() -> str:
    """What keeps a server from being started here; empty when nothing does."""
    missing = [program for program in PROGRAMS if _program(program) is None]
    if missing:
        return f"{', '.join(missing)} not found; run: apt-get install mariadb-server"
    try:
        import MySQLdb  # noqa: F401
    except ImportError as error:
        return f"mysqlclient cannot be loaded ({error}); run: pip install 'fleetpulse[mysql]'"
    return ""


def missing_disk() -> str:
    """What keeps a server from having a disk of its own; empty when nothing does."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount("64k", Path(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            return (
                f"a small disk cannot be mounted here ({error}): that takes root, or sudo without a password"
            )
        _unmount(Path(folder))
    return ""


class PortTaken(Exception):
    """Another program listens on the port that was meant for the server."""


def database_of(url: str) -> str:
    """The name of the database at an address."""
    return url.partition("?")[0].rpartition("/")[2]


class MariadbServer:
    """One mariadbd. `arguments` are added to its command line, such as "--max-connections=20".

    The user root has no password, on the socket and on 127.0.0.1. `disk`, such as "256M", gives the
    server's data a disk of its own of that size (see `missing_disk`).
    """

    def __init__(self, *arguments: str, disk: str = ""):
        # Not pytest's folder: a socket's path may have only 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="fp-mdb-"))
        self.socket = str(self.folder / "s")
        self._disk = disk
        if disk:
            self.data_folder.mkdir()
            _mount(disk, self.data_folder)
        self._arguments = arguments
        self._names = (f"t{number}" for number in itertools.count(1))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._install()

    def __enter__(self) -> MariadbServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def data_folder(self) -> Path:
        """Where the server keeps its data."""
        return self.folder / "d"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, on the same port as before, and wait until it answers."""
        if self.port:
            self._start(self.port)
            return
        for _ in range(5):
            port, _ = free_ports()
            try:
                self._start(port)
            except PortTaken:  # somebody took it between our look and the server's
                continue
            self.port = port
            return
        raise AssertionError("no port stays free long enough to start a server on it")

    def _start(self, port: int) -> None:
        log_path = self.folder / "log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(_program("mariadbd")),
                    "--no-defaults",
                    f"--datadir={self.data_folder}",
                    f"--socket={self.socket}",
                    f"--port={port}",
                    f"--pid-file={self.folder / 'pid'}",
                    "--bind-address=127.0.0.1",
                    f"--tmpdir={self.folder}",  # a server that starts clears out its own
                    "--skip-name-resolve",
                    "--innodb-flush-log-at-trx-commit=1",
                    "--innodb-buffer-pool-size=64M",
                    *_as_root(),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.query("SELECT 1")
            except Exception:  # noqa: BLE001 - the driver may not be there to name its own error
                said = log_path.read_text(errors="replace")
                if not self.is_running and "Address already in use" in said:
                    raise PortTaken from None
                if not self.is_running or time.monotonic() > deadline:
                    raise AssertionError(said[-4000:]) from None
                time.sleep(0.02)
            else:
                return

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """Stop the server: SIGTERM in order, SIGKILL like a power loss."""
        if self._process is not None:
            self._process.send_signal(with_signal)
            self._process.wait(60)

    def restart(self, with_signal: int = signal.SIGTERM) -> None:
        self.stop(with_signal)
        self.start()

    def close(self) -> None:
        """Stop the server at once and delete everything."""
        self.stop(signal.SIGKILL)
        if self._disk:
            _unmount(self.data_folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(self, database: str = "", **options: Any) -> Any:
        """A connection of the driver, as root over the socket unless `options` say otherwise."""
        import MySQLdb

        return MySQLdb.connect(
            **{
                "unix_socket": self.socket,
                "user": "root",
                "database": database,
                "charset": "utf8mb4",
                "autocommit": True,
                **options,
            }
        )

    def query(
        self, sql: str, parameters: tuple[object, ...] = (), database: str = ""
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own."""
        connection = self.connect(database)
        try:
            cursor = connection.cursor()
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())
        finally:
            connection.close()

    def status(self, name: str) -> int:
        """A counter of SHOW GLOBAL STATUS, such as Max_used_connections (FLUSH STATUS resets it)."""
        return int(self.query("SHOW GLOBAL STATUS LIKE %s", (name,))[0][1])

    def fresh_database(self) -> str:
        """Make an empty database; its URL."""
        name = next(self._names)
        self.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return self.url(name)

    def url(self, database: str) -> str:
        """The address of a database over the socket."""
        return f"mysql://root@/{database}?unix_socket={self.socket}"

    def tcp_url(self, database: str) -> str:
        """The address of a database over TCP."""
        return f"mysql://root@127.0.0.1:{self.port}/{database}"

    def account(self, url: str, name: str = "fleet", *, like: str = SERVICE, connections: int = 0) -> str:
        """The address of the same database for an account of what docs/security.md grants to `like`.

        `connections` is how many it may have at a time (0: any number).
        """
        database = database_of(url)
        privileges = documented_privileges()[like]
        for host in ("localhost", "127.0.0.1"):
            self.query(f"CREATE OR REPLACE USER {name}@'{host}' WITH MAX_USER_CONNECTIONS {connections}")
            self.query(f"GRANT {privileges} ON {database}.* TO {name}@'{host}'")
        return url.replace("root@", f"{name}@")

    def drop_databases(self) -> None:
        """Drop every database that a test made."""
        own = {"information_schema", "performance_schema", "mysql", "sys"}
        for (name,) in self.query("SHOW DATABASES"):
            if name not in own:
                self.query(f"DROP DATABASE `{name}`")

    def _install(self) -> None:
        done = subprocess.run(
            [
                str(_program("mariadb-install-db")),
                "--no-defaults",
                f"--datadir={self.data_folder}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                f"--tmpdir={self.folder}",
                "--skip-name-resolve",
                *_as_root(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-4000:]


def _program(name: str) -> str | None:
    # Debian keeps servers in a folder that is not on everybody's PATH.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


def _mount(size: str, folder: Path) -> None:
    options = f"size={size},mode=0700,uid={os.getuid()},gid={os.getgid()}"
    command = [*_sudo(), "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    subprocess.run([*_sudo(), "umount", str(folder)], check=True)


def _sudo() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]
