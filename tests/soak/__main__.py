"""A lab of many agents with every fault that we know, and a ledger that tells the truth in the end.

    python -m tests.soak --minutes 30 --seed 7

Prints what happens, then a summary, then one line of JSON. Exit code 0: the ledger and the database
agree exactly; 1: they do not, or something did not recover.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.soak.run import Soak, Verdict
from tests.soak.world import POOL_SIZE, Size, World


def summary(verdict: Verdict) -> str:
    """For people."""
    lines = [
        f"{verdict.seconds / 60:.1f} minutes, {verdict.hosts} hosts",
        f"reports {verdict.reports}, transitions {verdict.transitions}, hosts' deaths {verdict.deaths} x a hive",
        f"certificates renewed {verdict.renewals}, changes of the CA {verdict.ca_changes}",
        f"lost {verdict.lost}, duplicated {verdict.duplicated}",
        f"connections at most {verdict.most_connections} of {POOL_SIZE}",
        f"threads of the collector at most {verdict.most_threads}",
        "",
        f"{'fault':32} {'injected':>8} {'longest recovery':>17}",
    ]
    lines += [
        f"{name:32} {verdict.faults[name]:8} {verdict.recovery.get(name, 0):15.1f} s"
        for name in sorted(verdict.faults)
    ]
    lines += ["", f"{'memory':32} {'peak':>8} {'slope':>17}"]
    for kind, peak in verdict.peak.items():
        slope = verdict.slope[kind]
        told = "too short to tell" if slope is None else f"{slope:.2f} MB/h"
        lines.append(f"{kind:32} {peak:5.0f} MB {told:>17}")
    lines += [f"PROBLEM {problem}" for problem in verdict.problems]
    return "\n".join(lines)


def soak(
    folder: Path, size: Size, *, seconds: float, seed: int, longest: float, deaths: int, settling: float
) -> Verdict:
    """Run one; what came out. Raises AssertionError if something does not recover."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {text}", flush=True)

    with ExitStack() as stack:
        world = World(size, folder, seed, stack)
        return Soak(world, settling=settling, say=say).run(seconds, seed, longest, deaths)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--longest", type=float, default=20, help="seconds that a fault lasts at most")
    parser.add_argument("--seed", type=int, help="the same faults in the same order; default: a new one")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and ledgers")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    folder = Path(tempfile.mkdtemp(prefix="fleetpulse-soak-"))
    print(f"seed {seed}, logs in {folder}", flush=True)
    verdict = soak(
        folder,
        Size(hosts=options.hosts, ttl=90),
        seconds=options.minutes * 60,
        seed=seed,
        longest=options.longest,
        deaths=max(1, round(options.minutes / 12)),
        settling=120,
    )
    print(f"\n{summary(verdict)}\n")
    print(json.dumps({**asdict(verdict), "seed": seed}))
    if not verdict.problems and not options.keep:
        shutil.rmtree(folder)
    sys.exit(1 if verdict.problems else 0)


if __name__ == "__main__":
    main()
