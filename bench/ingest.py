"""How many durable reports a collector takes in, and what one costs beside a bare echo.

    python -m bench.ingest [--quick] [--json] [--writers 1,2,4] [--batch 500] [--tls]

Runs the real collector on a private MariaDB (innodb_flush_log_at_trx_commit=1, pool of 8) and a
`grpc.aio` echo of the same messages in turns, from the same streams, and compares the CPU time
that each server spends per report. The echo runs twice: bare, as gRPC and asyncio are unless told otherwise, and
tuned, with the collector's own event loop and settings. Then the same rate of reports from ever more hosts, beside
the tuned echo: what a report costs must not grow with their number. And half of what the collector can take at
most: how long from sent to acked. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.echo import echo_server
from bench.result import Goal, parser, print_result
from bench.usage import cpu_seconds
from tests.mariadb_server import MariadbServer

_PROGRAMS = Path(sys.executable).parent


def run_load(
    address: str, pids: dict[str, int], arguments: argparse.Namespace, *options: str, streams: int = 0
) -> dict[str, Any]:
    """Drive one server; reports a second, latency, and each process's CPU time per report in us."""
    command = [sys.executable, "-m", "bench.load", address, "--streams", str(streams or arguments.streams)]
    command += ["--seconds", str(arguments.seconds), "--warm-up", str(arguments.warm_up), *options]
    used: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        result: dict[str, Any] = {}
        for line in load.stdout:
            said = json.loads(line)
            if said["at"] == "result":
                result = said
                continue
            sign = -1 if said["at"] == "begin" else 1
            for name, pid in pids.items():
                used[name] = used.get(name, 0.0) + sign * cpu_seconds(pid)
    if not result:
        raise SystemExit(f"the load on {address} failed")
    figures = {
        "reports_per_s": result["acked"] / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
    }
    return figures | {f"{name}_us": seconds / result["acked"] * 1e6 for name, seconds in used.items()}


class Collector(NamedTuple):
    """One that runs: where it listens, its process, and how its commands find it."""

    address: str
    enroll_address: str
    pid: int
    environ: dict[str, str]

    def ask(self, *arguments: str) -> Any:
        """What one of its commands answers."""
        command: list[str | Path] = [_PROGRAMS / "collector-cli", *arguments, "--json"]
        return json.loads(subprocess.check_output(command, env=self.environ))

    def enrolment(self, hosts: int, folder: Path) -> list[str]:
        """The options with which a load of so many hosts enrols."""
        token = folder / "token"
        token.touch(0o600)
        token.write_text(self.ask("token", "create", "--uses", str(hosts))["token"])
        fingerprint = self.ask("ca", "show")["fingerprint"]
        return [
            *("--enroll", self.enroll_address, "--token-file", str(token)),
            *("--ca-fingerprint", fingerprint, "--state-dir", str(folder / "hosts")),
        ]


@contextmanager
def collector(url: str, **settings: object) -> Iterator[Collector]:
    """A real collector on a database with a fresh schema, in plaintext unless the settings say otherwise."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE")}
    environ |= {
        "FLEETPULSE_DATABASE": url,
        "FLEETPULSE_LISTEN": "127.0.0.1:0",
        "FLEETPULSE_TLS": "off",
        "FLEETPULSE_LOG_FORMAT": "json",
    }
    environ |= {f"FLEETPULSE_{key.upper()}": str(value) for key, value in settings.items()}
    subprocess.run(
        [_PROGRAMS / "collector-cli", "db", "upgrade"], env=environ, check=True, stdout=subprocess.DEVNULL
    )
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([_PROGRAMS / "fleet-collector"], env=environ, stderr=log) as service,
    ):
        try:
            listening = _listening(service, log)
            yield Collector(listening["address"], listening["enroll_address"], service.pid, environ)
        finally:
            service.send_signal(signal.SIGTERM)
            if service.wait(60) != 0:
                log.seek(0)
                sys.stderr.write(log.read()[-4000:])


def _listening(service: subprocess.Popen[bytes], log: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and service.poll() is None:
        log.seek(0)
        for line in log:
            if '"listening"' in line:
                said: dict[str, Any] = json.loads(line)
                return said
        time.sleep(0.05)
    log.seek(0)
    raise SystemExit(f"the collector does not start:\n{log.read()}")


def _rounds(
    arguments: argparse.Namespace, database: MariadbServer, writers: int, batch: int, change: float
) -> Any:
    rows = []
    url = database.fresh_database()
    with (
        tempfile.TemporaryDirectory() as folder,
        echo_server() as echo,
        echo_server("--tuned") as tuned,
        collector(
            url,
            writers=writers,
            batch_reports=batch,
            pool_size=8,
            tls="on" if arguments.tls else "off",
            identity_dir=f"{folder}/identity",
        ) as served,
    ):
        options = ["--change", str(change)]
        if arguments.tls:
            options += served.enrolment(arguments.streams, Path(folder))
        for _ in range(arguments.rounds):
            pids = {"collector": served.pid, "database": database.pid}
            row = _echo(arguments, "echo", echo) | _echo(arguments, "tuned", tuned)
            row |= run_load(served.address, pids, arguments, *options)
            row |= {
                "ratio": row["collector_us"] / row["echo_us"],
                "tuned_ratio": row["collector_us"] / row["tuned_us"],
            }
            rows.append(row)
    spread = [min(row["ratio"] for row in rows), max(row["ratio"] for row in rows)]
    return {"writers": writers, "batch": batch, "change": change, **_medians(rows), "ratio_spread": spread}


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: median(row[name] for row in rows) for name in rows[0]}


def _echo(
    arguments: argparse.Namespace, name: str, server: tuple[str, int], *options: str, streams: int = 0
) -> dict[str, Any]:
    """CPU of an echo per message, as NAME_us."""
    address, pid = server
    figures = run_load(address, {name: pid}, arguments, "--echo", *options, streams=streams)
    return {f"{name}_us": figures[f"{name}_us"]}


def _at_a_rate(
    arguments: argparse.Namespace, database: MariadbServer, hosts: int, rate: float
) -> dict[str, Any]:
    """So many reports a second from so many hosts, a hundredth of them with a change."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"pool_size": 8, "limits_connections": 20_000, "identity_dir": f"{folder}/identity"}
        with collector(database.fresh_database(), **settings) as served:
            pids = {"collector": served.pid, "database": database.pid}
            rated = ["--change", "0.01", *_rated(arguments, hosts, rate)]
            return {"hosts": hosts, **run_load(served.address, pids, arguments, *rated, streams=hosts)}


def _rated(arguments: argparse.Namespace, hosts: int, rate: float) -> list[str]:
    # A host's first report writes all that it says; it is not to be within the window.
    return ["--rate", str(rate), "--warm-up", str(max(arguments.warm_up, 1.2 * hosts / rate))]


def _steady(
    arguments: argparse.Namespace, database: MariadbServer, numbers: list[int]
) -> list[dict[str, Any]]:
    """The medians at the same rate from each number of hosts, measured in turns."""
    rows: dict[int, list[dict[str, Any]]] = {hosts: [] for hosts in numbers}
    for _ in range(arguments.turns):
        for hosts in numbers:
            row = _at_a_rate(arguments, database, hosts, arguments.rate)
            with echo_server("--tuned") as tuned:
                rated = _rated(arguments, hosts, arguments.rate)
                row |= _echo(arguments, "tuned", tuned, *rated, streams=hosts)
            rows[hosts].append({**row, "tuned_ratio": row["collector_us"] / row["tuned_us"]})
    return [_medians(rows[hosts]) for hosts in numbers]


def main() -> None:
    options = parser(__doc__, "short rounds of the first variant: under 50 s")
    options.add_argument("--streams", type=int, default=1000, help="hosts, in the rounds and at half")
    options.add_argument("--seconds", type=float, default=5.0, help="length of a measured window")
    options.add_argument("--warm-up", type=float, default=4.0, help="seconds before each")
    options.add_argument("--rounds", type=int, default=3, help="how often both echoes and the collector")
    options.add_argument("--writers", default="2", help="comma-separated numbers of writers to compare")
    options.add_argument("--batch", default="500", help="comma-separated batch sizes to compare")
    options.add_argument(
        "--change", default="0.01,1", help="comma-separated shares of reports that change a state"
    )
    options.add_argument(
        "--hosts", default="100,1000,10000", help="comma-separated numbers to compare at --rate"
    )
    options.add_argument("--rate", type=float, default=1500, help="reports a second of all of them together")
    options.add_argument("--turns", type=int, default=3, help="how often each number of hosts")
    options.add_argument("--tls", action="store_true", help="in the rounds the collector speaks TLS")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.change = 2, 1.5, "0.01"
        arguments.hosts, arguments.turns, arguments.warm_up = "100,1000", 1, 1.0
    variants = []
    with MariadbServer() as database:
        for change in map(float, arguments.change.split(",")):
            for writers in _numbers(arguments.writers):
                for batch in _numbers(arguments.batch):
                    row = _rounds(arguments, database, writers, batch, change)
                    variants.append(row)
                    if not arguments.json:
                        _print_row(row, first=len(variants) == 1)
        most = max(row["reports_per_s"] for row in variants)
        rated = _steady(arguments, database, _numbers(arguments.hosts))
        half = _at_a_rate(arguments, database, arguments.streams, most / 2)
    if not arguments.json:
        _print_rated(rated)
        print(f"half of the most: {half['reports_per_s']:.0f} reports/s, p99 {half['p99_ms']:.1f} ms")
    costs = [row["collector_us"] for row in rated]
    goals = [
        Goal("collector CPU per report / echo", round(variants[0]["ratio"], 2), "<=", 1.4),
        Goal(
            f"CPU per report, dearest / cheapest of {arguments.hosts} hosts",
            round(max(costs) / min(costs), 2),
            "<=",
            1.15,
        ),
        Goal("p99 from sent to acked at half of the most, ms", round(half["p99_ms"]), "<=", 250),
    ]
    print_result("ingest", goals, variants=variants, rated=rated, half=half)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _print_rated(rows: list[dict[str, Any]]) -> None:
    print("\nhosts  reports/s  p50 ms  p99 ms  tuned us  collector us  database us  ratio")
    for row in rows:
        print(
            f"{row['hosts']:5} {row['reports_per_s']:10.0f} {row['p50_ms']:7.1f} {row['p99_ms']:7.1f} "
            f"{row['tuned_us']:9.0f} {row['collector_us']:13.0f} {row['database_us']:12.0f} "
            f"{row['tuned_ratio']:6.2f}"
        )


def _print_row(row: dict[str, Any], *, first: bool) -> None:
    if first:
        print(
            "change  writers  batch  reports/s  p50 ms  p99 ms  echo us  tuned us  collector us  database us  "
            "ratio (spread)    to tuned"
        )
    low, high = row["ratio_spread"]
    print(
        f"{row['change']:6.0%} {row['writers']:8} {row['batch']:6} {row['reports_per_s']:10.0f} {row['p50_ms']:7.0f} "
        f"{row['p99_ms']:7.0f} {row['echo_us']:8.0f} {row['tuned_us']:9.0f} {row['collector_us']:13.0f} "
        f"{row['database_us']:12.0f}  {row['ratio']:5.2f} ({low:.2f}-{high:.2f})  {row['tuned_ratio']:8.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
