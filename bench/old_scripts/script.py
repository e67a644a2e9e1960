"""The script that fleetpulse replaces: a process pool that asks machines over SSH and writes into MySQL.

Written as such scripts are: `multiprocessing.Pool`, paramiko, a handful of commands a host, mysql-connector.
What the four designs beside this module differ in is how a process comes by its connection to the database.

`python -m bench.old_scripts.<design> --inventory FILE --port N --database NAME` polls every host once and
prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import paramiko

_USER = "script"
SCHEMA = """
CREATE TABLE status (
  host VARCHAR(255) PRIMARY KEY,
  uptime VARCHAR(255) NOT NULL,
  load1 DOUBLE NOT NULL,
  memory_used DOUBLE NOT NULL,
  disk_used DOUBLE NOT NULL,
  state VARCHAR(16) NOT NULL,
  changed_at DOUBLE NOT NULL,
  checked_at DOUBLE NOT NULL
)
"""


class Host(NamedTuple):
    """Whom to ask."""

    name: str
    address: str
    port: int
    user: str
    key_file: str


class Status(NamedTuple):
    """What a host said."""

    uptime: str
    load1: float
    memory_used: float
    disk_used: float

    @property
    def state(self) -> str:
        if self.disk_used > 95 or self.memory_used > 95:
            return "CRITICAL"
        return "WARNING" if self.disk_used > 85 or self.memory_used > 85 or self.load1 > 8 else "OK"


database: dict[str, Any] = {}
"""How to connect; set before the processes fork."""


def poll(host: Host) -> Status:
    """Log in, run the commands, log out."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    try:
        client.connect(
            host.address,
            port=host.port,
            username=host.user,
            key_filename=host.key_file,
            timeout=30,
            allow_agent=False,
            look_for_keys=False,
        )
        uptime = _run(client, "uptime")
        disks = _run(client, "df -P")
        memory = _run(client, "cat /proc/meminfo")
        load = _run(client, "cat /proc/loadavg")
    finally:
        client.close()
    return Status(uptime.strip(), float(load.split()[0]), _memory_used(memory), _fullest(disks))


def _run(client: paramiko.SSHClient, command: str) -> str:
    _, stdout, _ = client.exec_command(command, timeout=30)
    text = stdout.read().decode()
    if stdout.channel.recv_exit_status() != 0:
        raise RuntimeError(f"{command} failed")
    return text


def _memory_used(meminfo: str) -> float:
    sizes = {name: int(rest.split()[0]) for name, _, rest in (s.partition(":") for s in meminfo.splitlines())}
    return 100 * (1 - sizes["MemAvailable"] / sizes["MemTotal"])


def _fullest(disks: str) -> float:
    used = [line.split()[4] for line in disks.splitlines()[1:]]
    return max(float(share.rstrip("%")) for share in used if share != "-")


def save(connection: Any, host: Host, status: Status) -> None:
    """Compare with the previous status and write the new one."""
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT host, state, changed_at FROM status WHERE host = %s", (host.name,))
        previous = cursor.fetchone()
        if previous and previous[0] != host.name:  # no such script looks; it is here to be counted
            raise RuntimeError("got the row of another host")
        now = time.time()
        changed_at = previous[2] if previous and previous[1] == status.state else now
        cursor.execute(
            "REPLACE INTO status VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (host.name, *status, status.state, changed_at, now),
        )
        connection.commit()
    finally:
        cursor.close()


def run(
    check: Callable[[Host], None],
    *,
    prepare: Callable[[], None] | None = None,
    initialize: Callable[[], None] | None = None,
) -> None:
    """Poll every host once with `check`; `prepare` runs before the fork, `initialize` in every process."""
    options = _options()
    database.update(host="127.0.0.1", port=options.port, user=_USER, database=options.database)
    hosts = _hosts(options.inventory)
    multiprocessing.set_start_method("fork")
    began = time.monotonic()
    if prepare:
        prepare()
    answered = 0
    errors: Counter[str] = Counter()
    with multiprocessing.Pool(options.processes, initialize) as pool:
        results = pool.imap_unordered(partial(_attempt, check), hosts)
        for _ in hosts:
            try:
                error = results.next(options.patience)
            except multiprocessing.TimeoutError:
                # A process that waits for an answer which another one has read waits for ever.
                errors["hangs"] = len(hosts) - answered - errors.total()
                break
            if error:
                errors[error] += 1
            else:
                answered += 1
    pool.join()
    figures = {
        "ok": answered,
        "failed": errors.total(),
        "errors": dict(errors.most_common(3)),
        "seconds": time.monotonic() - began,
        "cpu_seconds": _cpu_seconds(),
    }
    print(json.dumps(figures))


def _attempt(check: Callable[[Host], None], host: Host) -> str:
    """What went wrong; empty when nothing did."""
    try:
        check(host)
    except Exception as error:  # noqa: BLE001 - such scripts log whatever it is and go on
        # The same error comes with and without the SQLSTATE.
        return re.sub(r" \(\w{5}\)", "", f"{type(error).__name__}: {error}")[:120]
    return ""


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _hosts(inventory: Path) -> list[Host]:
    hostvars = json.loads(inventory.read_text(encoding="ascii"))["_meta"]["hostvars"]
    names = ("ansible_host", "ansible_port", "ansible_user", "ansible_ssh_private_key_file")
    return [Host(name, *(values[key] for key in names)) for name, values in hostvars.items()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True, help="where MariaDB listens on 127.0.0.1")
    parser.add_argument("--database", required=True)
    parser.add_argument("--processes", type=int, default=120)
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds without any result after which the rest hangs"
    )
    return parser.parse_args()
