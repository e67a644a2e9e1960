"""What a report costs the database in rows and bytes, beside writing every state and value of every report.

    python -m bench.rows [--quick] [--json] [--hosts 1000] [--reports 20]

The real collector on a private MariaDB (innodb_flush_log_at_trx_commit=1, no binary log): as fast as it can, while
nothing changes, and with a change in one report in a hundred; and the same at the pace of 1,000 and of 10,000 hosts
that report every 15 s, where batches are small. Beside it `bench.everything`, in the same run, on the same server. Rows are the server's own
count (userstat, TABLE_STATISTICS), bytes its counters: redo log, and pages written until none is dirty any more.
Counted from rest to rest, so that every report is in. What a collector writes by the clock however many report (its
heartbeat, and its leases on SSH hosts) is no part of the rows per report, and shown beside them as rows a second. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from bench.everything import ROWS, Everything
from bench.ingest import Collector, collector
from bench.load import LAYOUT, METHOD, Host
from bench.result import Goal, parser, print_result
from bench.usage import cpu_seconds
from fleetpulse import convert
from fleetpulse.v1 import ingest_pb2 as pb
from tests.mariadb_server import MariadbServer

_COUNTERS = ("Innodb_os_log_written", "Innodb_data_written", "Com_commit")
_PER_SECOND = (
    "collector",
    "setting",
    "ssh_poller",
    "ssh_share",
)  # tables written by the clock, not by reports
_EVENTS = 50_000  # enough for the size of one
_FEW_PAGES = 20  # of 16 KiB: what a collector makes dirty by the clock
_PACES = {"at_1000_hosts": 1000 / 15, "at_10000_hosts": 10_000 / 15}  # reports a second


class Stream:
    """One host's, one report in flight."""

    def __init__(self, address: str, number: int):
        self.host = Host(number, 1, 0.0)
        self._messages = self.host.messages()
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.stream_stream(
            METHOD,
            request_serializer=pb.StreamRequest.SerializeToString,
            response_deserializer=pb.StreamResponse.FromString,
        )()

    async def open(self) -> None:
        await self._call.write(convert.encode_hello(self.host.hello))
        await self._call.read()
        await self._call.write(convert.encode_layout(LAYOUT))
        await self.report(2)

    async def report(self, count: int) -> int:
        """So many reports, each after the ack of the one before; how many changes they carry."""
        before = self.host.changes
        for _ in range(count):
            await self._call.write(next(self._messages))
            if await self._call.read() is grpc.aio.EOF:
                raise SystemExit(f"a stream ended: {await self._call.details()}")
        return self.host.changes - before

    async def report_at(self, moments: Sequence[float]) -> int:
        """A report at each of these times of the loop's clock, or as soon as the one before is acked."""
        changes = 0
        for moment in moments:
            await asyncio.sleep(moment - asyncio.get_running_loop().time())
            changes += await self.report(1)
        return changes

    async def close(self) -> None:
        await self._call.done_writing()
        await self._channel.close()


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
    """Until the data files hold all, but for what becomes dirty by the clock meanwhile."""
    server.query("SET GLOBAL innodb_max_dirty_pages_pct_lwm = 0, innodb_max_dirty_pages_pct = 0")
    deadline = time.monotonic() + 5
    while server.status("Innodb_buffer_pool_pages_dirty") > _FEW_PAGES and time.monotonic() < deadline:
        time.sleep(0.05)
    server.query("SET GLOBAL innodb_max_dirty_pages_pct = 90")


def _disk_bytes(pid: int) -> int:
    """Bytes that a process has had sent to the disk, by the kernel's count (proc(5)); 0 if /tmp is memory."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


async def _situations(
    served: Collector, server: MariadbServer, schema: str, options: argparse.Namespace
) -> dict[str, Any]:
    streams = [Stream(served.address, number) for number in range(options.hosts)]
    await asyncio.gather(*(stream.open() for stream in streams))
    found: dict[str, Any] = {}
    for name, change in (("calm", 0.0), ("one_percent", 0.01)):
        for stream in streams:
            stream.host.change = change
        counted = Counted(server, schema, served.pid)
        changes = await asyncio.gather(*(stream.report(options.reports) for stream in streams))
        found[name] = counted.figures(options.hosts * options.reports) | {"changes": sum(changes)}
    for name, pace in _PACES.items():
        counted = Counted(server, schema, served.pid)
        reports = int(pace * options.seconds)
        start = asyncio.get_running_loop().time()
        moments = [start + index / pace for index in range(reports)]
        changes = await asyncio.gather(
            *(stream.report_at(moments[index :: len(streams)]) for index, stream in enumerate(streams))
        )
        found[name] = counted.figures(reports) | {"changes": sum(changes)}
    for stream in streams:
        await stream.close()
    return found


def _everything(server: MariadbServer, hosts: int, rounds: int, batch: int) -> dict[str, Any]:
    schema = server.fresh_database().partition("?")[0].rpartition("/")[2]
    connection = server.connect(schema, autocommit=False)
    script = Everything(connection, hosts)
    script.write(2, batch)
    counted = Counted(server, schema, os.getpid())
    figures = counted.figures(script.write(rounds, batch))
    connection.close()
    return figures | {"computed_rows": ROWS}


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
        schema = url.partition("?")[0].rpartition("/")[2]
        with collector(url, pool_size=8, writers=2, batch_reports=options.batch) as served:
            found = asyncio.run(_situations(served, server, schema, options))
        found["event_bytes"] = _event_bytes(server, schema)
        found["everything"] = _everything(server, options.hosts, options.rounds, options.batch)
        paced = max(1, round(found["at_1000_hosts"]["reports_per_commit"]))
        found["everything_at_1000_hosts"] = _everything(server, options.hosts, 1, paced)
    return found


def _print_table(found: dict[str, Any]) -> None:
    names = {
        "calm": "nothing changes",
        "one_percent": "1 % change",
        "at_1000_hosts": "the same, at the pace of 1,000 hosts",
        "at_10000_hosts": "of 10,000 hosts",
        "everything": "everything written",
        "everything_at_1000_hosts": "the same, in batches as with 1,000 hosts",
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


def main() -> None:
    arguments = parser(__doc__, "fewer reports: under 50 s")
    arguments.add_argument("--hosts", type=int, default=1000)
    arguments.add_argument("--reports", type=int, default=20, help="of each host in each situation")
    arguments.add_argument(
        "--rounds", type=int, default=10, help="reports of each host that the script writes"
    )
    arguments.add_argument("--batch", type=int, default=500, help="reports in a transaction, at most")
    arguments.add_argument("--seconds", type=float, default=15.0, help="how long at each pace")
    options = arguments.parse_args()
    if options.quick:
        options.reports, options.rounds, options.seconds = 5, 2, 4.0
    found = _measure(options)
    if not options.json:
        _print_table(found)
    goals = [
        Goal("rows per report when nothing changes, without the clock's", found["calm"]["rows"], "<=", 2),
        Goal("rows per report with 1 % change, without the clock's", found["one_percent"]["rows"], "<=", 2.1),
        Goal(
            "rows per report at the pace of 1,000 hosts, without the clock's",
            found["at_1000_hosts"]["rows"],
            "<=",
            2.1,
        ),
    ]
    print_result("rows", goals, hosts=options.hosts, **found)


if __name__ == "__main__":
    main()
