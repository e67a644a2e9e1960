"""How many durable reports a collector takes in, and what one costs beside a bare echo.

    python -m bench.ingest [--quick] [--json] [--writers 1,2,4] [--batch 500] [--tls]

Runs the real collector on a private MariaDB (innodb_flush_log_at_trx_commit=1, pool of 8) and a `grpc.aio` echo of
the same messages (`bench.echo`) in turns, from the same streams, and compares the CPU time that each server spends
per report. The echo runs twice: bare, as gRPC and asyncio are unless told otherwise, and tuned, with the collector's
own event loop and settings. With --tls all three speak TLS, to hosts with the same certificates; without it none.

Then the same rate of reports from ever more hosts, beside the tuned echo: what a report costs should not grow with
their number. Then half of what the collector can take at most: how long from when a report is due to its Ack. And,
unless --quick, what TLS adds: two collectors in turns, as fast as they can, one of which speaks it. All repeated;
shown are medians, and `spread` has the least and the greatest. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.echo import echo_server
from bench.result import Comparison, Goal, medians, parser, print_result, spreads
from bench.served import Collector, collector, run_load
from tests.mariadb_server import MariadbServer

_FEW_CHANGES = ("--change", "0.01")


class Ingest:
    """All that is measured, on one database server."""

    def __init__(self, database: MariadbServer, arguments: argparse.Namespace):
        self._database = database
        self._arguments = arguments

    @contextmanager
    def _collector(self, **settings: object) -> Iterator[tuple[Collector, Path]]:
        """With a pool of 8 on a fresh database, and a folder, in which `identity` is its own."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            url = self._database.fresh_database()
            with collector(url, pool_size=8, identity_dir=folder / "identity", **settings) as served:
                yield served, folder

    def variant(self, writers: int, batch: int, change: float) -> dict[str, Any]:
        """Both echoes and the collector in turns, as fast as they can."""
        tls, hosts = self._arguments.tls, self._arguments.streams
        settings = {"writers": writers, "batch_reports": batch, "tls": "on" if tls else "off"}
        with self._collector(**settings) as (served, folder):
            options = ["--change", str(change), *(served.enrolment(hosts, folder) if tls else ())]
            secured = ("--identity-dir", str(folder / "identity")) if tls else ()
            with echo_server(*secured) as echo, echo_server("--tuned", *secured) as tuned:
                rows = [self._round(served, echo, tuned, options) for _ in range(self._arguments.rounds)]
        told = {"writers": writers, "batch": batch, "change": change, "tls": tls}
        return told | medians(rows) | {"spread": spreads(rows)}

    def _round(
        self, served: Collector, echo: tuple[str, int], tuned: tuple[str, int], options: Sequence[str]
    ) -> dict[str, float]:
        row = self._echo("echo", echo, *options) | self._echo("tuned", tuned, *options)
        row |= self._load(served, *options)
        return row | {
            "ratio": row["collector_us"] / row["echo_us"],
            "tuned_ratio": row["collector_us"] / row["tuned_us"],
        }

    def _load(self, served: Collector, *options: str, streams: int = 0) -> dict[str, float]:
        pids = {"collector": served.pid, "database": self._database.pid}
        return run_load(served.address, pids, self._arguments, *options, streams=streams)

    def _echo(self, name: str, server: tuple[str, int], *options: str, streams: int = 0) -> dict[str, float]:
        """CPU of an echo per report, as NAME_us."""
        address, pid = server
        figures = run_load(address, {name: pid}, self._arguments, "--echo", *options, streams=streams)
        return {f"{name}_us": figures[f"{name}_us"]}

    def steady(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The same rate from each number of hosts, in turns, beside the tuned echo."""
        rate = self._arguments.rate
        rows: dict[int, list[dict[str, float]]] = {hosts: [] for hosts in numbers}
        for _ in range(self._arguments.turns):
            for hosts in numbers:
                row = self._at_a_rate(hosts, rate)
                with echo_server("--tuned") as tuned:
                    row |= self._echo("tuned", tuned, *self._rated(hosts, rate), streams=hosts)
                rows[hosts].append({**row, "tuned_ratio": row["collector_us"] / row["tuned_us"]})
        return [_repeated(hosts, rows[hosts]) for hosts in numbers]

    def half(self, rate: float) -> dict[str, Any]:
        """So many reports a second, again and again."""
        hosts = self._arguments.streams
        return _repeated(hosts, [self._at_a_rate(hosts, rate) for _ in range(self._arguments.turns)])

    def _at_a_rate(self, hosts: int, rate: float) -> dict[str, float]:
        """So many reports a second from so many hosts, a hundredth of them with a change."""
        with self._collector(limits_connections=20_000) as (served, _):
            return self._load(served, *self._rated(hosts, rate), streams=hosts)

    def _rated(self, hosts: int, rate: float) -> list[str]:
        # A host's first report writes all that it says; neither it nor what it holds up is to be within the window.
        warm_up = self._arguments.warm_up + 1.2 * hosts / rate
        return [*_FEW_CHANGES, "--rate", str(rate), "--warm-up", str(warm_up)]

    def tls(self) -> dict[str, Any]:
        """Two collectors in turns, as fast as they can: CPU per report in plaintext and over TLS, in us."""
        hosts = self._arguments.streams
        with self._collector() as (plain, _), self._collector(tls="on") as (secured, folder):
            enrolled = [*_FEW_CHANGES, *secured.enrolment(hosts, folder)]
            rows = []
            for _ in range(self._arguments.rounds):
                without = self._load(plain, *_FEW_CHANGES)["collector_us"]
                beside = self._load(secured, *enrolled)["collector_us"]
                rows.append({"plain_us": without, "tls_us": beside, "ratio": beside / without})
        return medians(rows) | {"spread": spreads(rows)}


def _repeated(hosts: int, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {"hosts": hosts, **medians(rows), "spread": spreads(rows)}


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    variants = []
    with MariadbServer() as database:
        ingest = Ingest(database, arguments)
        for change in map(float, arguments.change.split(",")):
            for writers in _numbers(arguments.writers):
                for batch in _numbers(arguments.batch):
                    variants.append(ingest.variant(writers, batch, change))
                    if not arguments.json:
                        _print_variant(variants[-1], first=len(variants) == 1)
        most = max(row["reports_per_s"] for row in variants)
        rated = ingest.steady(_numbers(arguments.hosts))
        found: dict[str, Any] = {"variants": variants, "rated": rated, "half": ingest.half(most / 2)}
        if not arguments.quick:
            found["tls"] = ingest.tls()
            found["tls_ratio"] = found["tls"]["ratio"]
    return found


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def goals(found: Mapping[str, Any]) -> list[Goal]:
    """What must hold. The first variant is the one that counts."""
    first, rated = found["variants"][0], found["rated"]
    return [
        Goal(f"collector CPU per report / echo{_spoken(first)}", round(first["ratio"], 2), "<=", 1.4),
        Goal(
            f"CPU per report, dearest / cheapest of {_hosts(rated)} hosts",
            _dearest_to_cheapest(rated, "collector_us"),
            "<=",
            1.15,
        ),
        Goal("p99 from due to acked at half of the most, ms", round(found["half"]["p99_ms"]), "<=", 250),
    ]


def comparisons(found: Mapping[str, Any]) -> list[Comparison]:
    """What stands beside them, of the first variant with each share of changes."""
    compared = []
    firsts = {row["change"]: row for row in reversed(found["variants"])}
    for change, row in sorted(firsts.items()):
        name = f"collector CPU per report / tuned echo{_spoken(row)}, {change:.0%} with a change"
        compared.append(Comparison(name, round(row["tuned_ratio"], 2)))
    rated = found["rated"]
    name = f"tuned echo's CPU per report, dearest / cheapest of {_hosts(rated)} hosts"
    compared.append(Comparison(name, _dearest_to_cheapest(rated, "tuned_us")))
    if "tls_ratio" in found:
        compared.append(Comparison("collector CPU per report, TLS / plaintext", round(found["tls_ratio"], 2)))
    return compared


def _spoken(variant: Mapping[str, Any]) -> str:
    return ", both over TLS" if variant["tls"] else ""


def _hosts(rated: Sequence[Mapping[str, Any]]) -> str:
    return ",".join(str(row["hosts"]) for row in rated)


def _dearest_to_cheapest(rated: Sequence[Mapping[str, Any]], figure: str) -> float:
    costs: list[float] = [row[figure] for row in rated]
    return round(max(costs) / min(costs), 2)


def _print_rest(found: Mapping[str, Any]) -> None:
    print("\nhosts  reports/s  p50 ms  p99 ms  tuned us  collector us  database us  ratio")
    for row in found["rated"]:
        print(
            f"{row['hosts']:5} {row['reports_per_s']:10.0f} {row['p50_ms']:7.1f} {row['p99_ms']:7.1f} "
            f"{row['tuned_us']:9.0f} {row['collector_us']:13.0f} {row['database_us']:12.0f} "
            f"{row['tuned_ratio']:6.2f}"
        )
    half = found["half"]
    print(f"half of the most: {half['reports_per_s']:.0f} reports/s, p99 {half['p99_ms']:.1f} ms")
    if "tls" in found:
        tls = found["tls"]
        low, high = tls["spread"]["ratio"]
        print(
            f"TLS: {tls['tls_us']:.0f} us a report, {tls['plain_us']:.0f} without: "
            f"{tls['ratio']:.2f} ({low:.2f}-{high:.2f})"
        )


def _print_variant(row: Mapping[str, Any], *, first: bool) -> None:
    if first:
        print(
            "change  writers  batch  reports/s  p50 ms  p99 ms  echo us  tuned us  collector us  database us  "
            "ratio (spread)    to tuned"
        )
    low, high = row["spread"]["ratio"]
    print(
        f"{row['change']:6.0%} {row['writers']:8} {row['batch']:6} {row['reports_per_s']:10.0f} {row['p50_ms']:7.0f} "
        f"{row['p99_ms']:7.0f} {row['echo_us']:8.0f} {row['tuned_us']:9.0f} {row['collector_us']:13.0f} "
        f"{row['database_us']:12.0f}  {row['ratio']:5.2f} ({low:.2f}-{high:.2f})  {row['tuned_ratio']:8.2f}",
        flush=True,
    )


def main() -> None:
    options = parser(__doc__, "short rounds of the first variant, and not what TLS adds: under 50 s")
    options.add_argument(
        "--streams", type=int, default=1000, help="hosts, but for where their numbers differ"
    )
    options.add_argument("--seconds", type=float, default=4.0, help="length of a measured window")
    options.add_argument("--warm-up", type=float, default=3.0, help="seconds before each")
    options.add_argument("--rounds", type=int, default=3, help="how often in turns, as fast as they can")
    options.add_argument("--writers", default="2", help="comma-separated numbers of writers to compare")
    options.add_argument("--batch", default="500", help="comma-separated batch sizes to compare")
    options.add_argument(
        "--change", default="0.01,1", help="comma-separated shares of reports that change a state"
    )
    options.add_argument(
        "--hosts", default="100,1000,10000", help="comma-separated numbers to compare at --rate"
    )
    options.add_argument("--rate", type=float, default=1500, help="reports a second of all of them together")
    options.add_argument("--turns", type=int, default=3, help="how often at a rate")
    options.add_argument(
        "--tls", action="store_true", help="collector and echoes speak TLS as fast as they can"
    )
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.change = 2, 1.2, "0.01"
        arguments.hosts, arguments.turns, arguments.warm_up = "100,1000", 1, 1.0
    found = _measure(arguments)
    if not arguments.json:
        _print_rest(found)
    print_result("ingest", goals(found), comparisons(found), **found)


if __name__ == "__main__":
    main()
