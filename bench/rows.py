"""What a report costs the database in rows and bytes, beside writing every state and value of every report.

    python -m bench.rows [--quick] [--json] [--hosts 1000] [--reports 20]

The real collector on a private MariaDB (innodb_flush_log_at_trx_commit=1, no binary log): as fast as it can, while
nothing changes, and with a change in one report in a hundred. Then the same hosts at the rate at which 1,000 and
10,000 of them report if each does every 15 s: at a low rate batches are small. It is the rate that differs, not the
number of hosts (`at_10000_hosts` has `hosts`, too). Beside it `bench.everything`, in the same run, on the same
server, with batches like the collector's, as fast as it can and at the rate of 1,000 hosts. All repeated, in turns;
shown are medians, and `spread` has the least and the greatest.

Rows are the server's own count (userstat, TABLE_STATISTICS), bytes its counters: redo log, and pages written until
none is dirty any more. Counted from rest to rest, so that every report is in. What a collector writes by the clock
however many report (its heartbeat, and its leases on SSH hosts) is no part of the rows per report, and shown beside
them as rows a second. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.everything import ROWS, Everything
from bench.result import Comparison, Goal, medians, parser, print_result, spreads
from bench.served import Collector, collector
from bench.stream import Host, Stream, connection
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer, database_of

_COUNTERS = ("Innodb_os_log_written", "Innodb_data_written", "Com_commit")
_PER_SECOND = (
    "collector",
    "setting",
    "ssh_poller",
    "ssh_share",
)  # tables written by the clock, not by reports
_BATCH = 500  # reports
_EVENTS = 50_000  # enough for the size of one
_FEW_PAGES = 20  # of 16 KiB: what a collector makes dirty by the clock
_INTERVAL = 15  # seconds from one report of a host to its next
_PACES = {"at_1000_hosts": 1000, "at_10000_hosts": 10_000}  # of how many hosts it is the rate
_PATIENCE = 60.0  # seconds


class Counted:
    """What a server has written since this was made, at rest then and now."""

    def __init__(self, server: MariadbServer, schema: str, writer: int):
        self._server = server
        self._schema = schema
        self._writer = writer
        _write_dirty_pages(server)
        self._before = self._counts() | self._cpu()

    def figures(self, reports: int) -> dict[str, Any]:
        """Per report, but for what is written by the clock: rows a second."""
        after = self._cpu()
        _write_dirty_pages(self._server)
        after |= self._counts()
        seconds = after["at"] - self._before["at"]
        used = {name: count - self._before.get(name, 0) for name, count in after.items()}
        rows = {name.removeprefix("."): count for name, count in used.items() if name[0] == "." and count}
        by_clock = sum(rows.pop(name, 0) for name in _PER_SECOND)
        return {
            "reports": reports,
            "reports_per_s": round(reports / used["busy_at"], 1),
            "rows": round(sum(rows.values()) / reports, 4),
            "tables": {name: round(count / reports, 4) for name, count in sorted(rows.items())},
            "rows_by_clock_per_s": round(by_clock / seconds, 2),
            "log_bytes": round(used["Innodb_os_log_written"] / reports),
            "data_bytes": round(used["Innodb_data_written"] / reports),
            "disk_bytes": round(used["disk"] / reports),
            "writer_us": round(used["writer"] / reports * 1e6, 1),
            "database_us": round(used["cpu"] / reports * 1e6, 1),
            "reports_per_commit": round(reports / used["Com_commit"], 1),
        }

    def _cpu(self) -> dict[str, float]:
        """With the moment, between which and the next there is nothing but reports."""
        cpu, writer = cpu_seconds(self._server.pid), cpu_seconds(self._writer)
        return {"cpu": cpu, "writer": writer, "busy_at": time.monotonic()}

    def _counts(self) -> dict[str, float]:
        server = self._server
        found: dict[str, float] = {name: server.status(name) for name in _COUNTERS}
        found |= {"at": time.monotonic(), "disk": _disk_bytes(server.pid)}
        rows = server.query(
            "SELECT table_name, rows_changed FROM information_schema.table_statistics WHERE table_schema = %s",
            (self._schema,),
        )
        return found | {f".{table}": int(count) for table, count in rows}


def _write_dirty_pages(server: MariadbServer) -> None:
    """Until the data files hold all, but for what becomes dirty by the clock meanwhile. SystemExit if that is long."""
    server.query("SET GLOBAL innodb_max_dirty_pages_pct_lwm = 0, innodb_max_dirty_pages_pct = 0")
    deadline = time.monotonic() + _PATIENCE
    while (dirty := server.status("Innodb_buffer_pool_pages_dirty")) > _FEW_PAGES:
        if time.monotonic() > deadline:
            raise SystemExit(f"after {_PATIENCE:g} s {dirty} pages are not in the data files")
        time.sleep(0.05)
    server.query("SET GLOBAL innodb_max_dirty_pages_pct = 90")


def _disk_bytes(pid: int) -> int:
    """Bytes that a process has had sent to the disk, by the kernel's count (proc(5)); 0 if /tmp is memory."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


class Fleet:
    """Hosts that report to one collector, and what its database has to write meanwhile. Made in a running loop.

    Raises TimeoutError where a minute more than was meant for it is not enough.
    """

    def __init__(self, served: Collector, server: MariadbServer, schema: str, hosts: int):
        self._served = served
        self._server = server
        self._schema = schema
        self._streams = [
            Stream(connection(served.address), Host(number, seed=1, change=0.0)) for number in range(hosts)
        ]

    async def open(self) -> None:
        """Connect, and report twice: what a host writes once is not to be counted."""
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(stream.open() for stream in self._streams))
            await asyncio.gather(*(_report(stream, 2) for stream in self._streams))

    async def close(self) -> None:
        for stream in self._streams:
            await stream.close()

    async def at_most(self, reports: int, change: float) -> dict[str, Any]:
        """So many reports of each host, as fast as they are acked."""
        self._set_change(change)
        counted = self._counted()
        async with asyncio.timeout(_PATIENCE):
            changes = await asyncio.gather(*(_report(stream, reports) for stream in self._streams))
        return counted.figures(len(self._streams) * reports) | {"changes": sum(changes)}

    async def at_a_rate(self, rate: float, seconds: float, change: float) -> dict[str, Any]:
        """So many reports a second of all hosts together, one after the other."""
        self._set_change(change)
        reports, several = int(rate * seconds), len(self._streams)
        counted = self._counted()
        start = asyncio.get_running_loop().time()
        moments = [start + index / rate for index in range(reports)]
        async with asyncio.timeout(seconds + _PATIENCE):
            changes = await asyncio.gather(
                *(_report_at(stream, moments[index::several]) for index, stream in enumerate(self._streams))
            )
        return counted.figures(reports) | {"changes": sum(changes)}

    def _set_change(self, change: float) -> None:
        for stream in self._streams:
            stream.host.change = change

    def _counted(self) -> Counted:
        return Counted(self._server, self._schema, self._served.pid)


async def _report(stream: Stream, count: int) -> int:
    """So many reports, each after the ack of the one before; how many changes they carry."""
    before = stream.host.changes
    for _ in range(count):
        await stream.report()
    return stream.host.changes - before


async def _report_at(stream: Stream, moments: Sequence[float]) -> int:
    """A report at each of these times of the loop's clock, or as soon as the one before is acked."""
    changes = 0
    for moment in moments:
        await asyncio.sleep(moment - asyncio.get_running_loop().time())
        changes += await _report(stream, 1)
    return changes


async def _situations(
    served: Collector, server: MariadbServer, schema: str, options: argparse.Namespace
) -> dict[str, Any]:
    fleet = Fleet(served, server, schema, options.hosts)
    await fleet.open()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("calm", "one_percent", *_PACES)}
    for _ in range(options.repeat):
        found["calm"].append(await fleet.at_most(options.reports, 0.0))
        found["one_percent"].append(await fleet.at_most(options.reports, 0.01))
        for name, hosts in _PACES.items():
            found[name].append(await fleet.at_a_rate(hosts / _INTERVAL, options.seconds, 0.01))
    await fleet.close()
    return {name: repeated(rows) for name, rows in found.items()}


def repeated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians of several rounds, and their spreads; 0 for a table that was not written in one of them."""
    names = sorted({name for row in rows for name in row["tables"]})
    tables = [{name: row["tables"].get(name, 0.0) for name in names} for row in rows]
    figures = [{name: figure for name, figure in row.items() if name != "tables"} for row in rows]
    return {**medians(figures), "tables": medians(tables), "spread": spreads(figures)}


def _everything(
    server: MariadbServer, hosts: int, reports: int, batch: int, rate: float = 0
) -> dict[str, Any]:
    schema = database_of(server.fresh_database())
    connected = server.connect(schema, autocommit=False)
    script = Everything(connected, hosts)
    script.write(2 * hosts, _BATCH)
    counted = Counted(server, schema, os.getpid())
    figures = counted.figures(script.write(reports, batch, rate))
    connected.close()
    return figures


def _all_everything(server: MariadbServer, options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """As fast as it can, and at the rate of 1,000 hosts with so many reports in a transaction."""
    rate = _PACES["at_1000_hosts"] / _INTERVAL
    fast, paced = [], []
    for _ in range(options.repeat):
        fast.append(_everything(server, options.hosts, options.rounds * options.hosts, options.batch))
        paced.append(_everything(server, options.hosts, int(rate * options.seconds), batch, rate))
    return {
        "everything": repeated(fast) | {"computed_rows": ROWS},
        "everything_at_1000_hosts": repeated(paced) | {"computed_rows": ROWS},
    }


def _event_bytes(server: MariadbServer, schema: str) -> int:
    """What an event takes of the disk, with its indexes; of as many like those that were written."""
    columns = "at, host, hostname, kind, subject, instance, old_value, new_value, message, measured_at"
    count = 0
    while count < _EVENTS:
        server.query(f"INSERT INTO event ({columns}) SELECT {columns} FROM event", database=schema)
        count = server.query("SELECT COUNT(*) FROM event", database=schema)[0][0]
    _write_dirty_pages(server)
    return round((server.data_folder / schema / "event.ibd").stat().st_size / count)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with MariadbServer("--userstat=1") as server:
        url = server.fresh_database()
        schema = database_of(url)
        with collector(url, pool_size=8, writers=2, batch_reports=options.batch) as served:
            found = asyncio.run(_situations(served, server, schema, options))
        for name, hosts in _PACES.items():
            found[name] |= {"hosts": options.hosts, "at_the_rate_of_hosts": hosts}
        found["event_bytes"] = _event_bytes(server, schema)
        batch = max(1, round(found["at_1000_hosts"]["reports_per_commit"]))
        return found | _all_everything(server, options, batch)


def _print_table(found: dict[str, Any]) -> None:
    names = {
        "calm": "nothing changes",
        "one_percent": "1 % change",
        "at_1000_hosts": "the same, at the rate of 1,000 hosts",
        "at_10000_hosts": "the same hosts, at the rate of 10,000",
        "everything": "everything written",
        "everything_at_1000_hosts": "the same, at the rate of 1,000 hosts, in batches as there",
    }
    columns = (
        "rows",
        "rows_by_clock_per_s",
        "log_bytes",
        "data_bytes",
        "disk_bytes",
        "writer_us",
        "database_us",
        "reports_per_commit",
    )
    print(f"| per report | {' | '.join(name.replace('_', ' ') for name in columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for key, name in names.items():
        print(f"| {name} | {' | '.join(f'{found[key][column]:g}' for column in columns)} |")
    print(f"An event takes {found['event_bytes']} bytes on the disk.")


def _goals(found: Mapping[str, Any]) -> list[Goal]:
    rows = {
        "when nothing changes": (found["calm"]["rows"], 2.0),
        "with 1 % change": (found["one_percent"]["rows"], 2.1),
        "at the rate of 1,000 hosts": (found["at_1000_hosts"]["rows"], 2.1),
    }
    return [
        Goal(f"rows per report {when}, without the clock's", value, "<=", goal)
        for when, (value, goal) in rows.items()
    ]


def _comparisons(found: Mapping[str, Any]) -> list[Comparison]:
    """Writing everything, by what was measured of ours."""
    fast, ours = found["everything"], found["one_percent"]
    slow, slow_ours = found["everything_at_1000_hosts"], found["at_1000_hosts"]
    return [
        Comparison("rows per report, everything written / 1 % change", round(fast["rows"] / ours["rows"], 1)),
        Comparison(
            "redo log per report, everything written / 1 % change",
            round(fast["log_bytes"] / ours["log_bytes"], 2),
        ),
        Comparison(
            "redo log per report at the rate of 1,000 hosts, everything written / ours",
            round(slow["log_bytes"] / slow_ours["log_bytes"], 2),
        ),
        Comparison(
            "database CPU per report at the rate of 1,000 hosts, everything written / ours",
            round(slow["database_us"] / slow_ours["database_us"], 2),
        ),
    ]


def main() -> None:
    arguments = parser(__doc__, "fewer reports: under 50 s")
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--reports", type=int, default=20, help="of each host in each situation")
    arguments.add_argument(
        "--rounds", type=int, default=10, help="reports of each host that the script writes"
    )
    arguments.add_argument("--batch", type=int, default=_BATCH, help="reports in a transaction, at most")
    arguments.add_argument("--seconds", type=float, default=15.0, help="how long at each rate")
    arguments.add_argument("--repeat", type=int, default=3, help="how often each situation")
    options = arguments.parse_args()
    if options.quick:
        options.reports, options.rounds, options.seconds, options.repeat = 5, 2, 4.0, 1
    found = _measure(options)
    if not options.json:
        _print_table(found)
    print_result("rows", _goals(found), _comparisons(found), hosts=options.hosts, **found)


if __name__ == "__main__":
    main()
