"""All benchmarks, one after the other: a table of goals, and bench/results.json.

    python -m bench [--quick] [NAME...]

Each is a process of its own, as `python -m bench.NAME --json`. What was measured before stays in the file for those
that are not named or fail, and the table says of which commit it is; with --quick the file is bench/quick.json.
Exit code 0 if all ran, whether or not they met their goals; 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NAMES = (
    "ingest",
    "rows",
    "workers",
    "zabbix",
    "crawl",
    "agent",
    "herd",
    "backlog",
    "read",
    "spool",
    "flood",
)
RESULTS = Path(__file__).with_name("results.json")
QUICK_RESULTS = Path(__file__).with_name("quick.json")
_PATIENCE = 1800.0  # seconds for one of them


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*NAMES, []], help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="each in under a minute")
    options = parser.parse_args()
    file = QUICK_RESULTS if options.quick else RESULTS
    results = json.loads(file.read_text()) if file.exists() else {}
    failed = []
    for name in options.names or NAMES:
        began = time.monotonic()
        print(f"{name} ...", end="", file=sys.stderr, flush=True)
        result = _run(name, quick=options.quick)
        print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)
        if result is None:
            failed.append(name)
            continue
        results[name] = {**result, "quick": options.quick, **_measured()}
        file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    print(f"\n{origin(results)}")
    if failed:
        parser.exit(1, f"failed, so the table has an earlier run of them or none: {', '.join(failed)}\n")


def _run(name: str, *, quick: bool) -> dict[str, Any] | None:
    command = [sys.executable, "-m", f"bench.{name}", "--json", *(["--quick"] if quick else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends what it has started
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            return None
    try:
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return found if process.returncode == 0 else None


def table(results: dict[str, Any]) -> str:
    """Every goal, what was reached, and what was measured beside it, in markdown."""
    lines = ["| benchmark | figure | goal | reached | |", "| --- | --- | --- | --- | --- |"]
    for name in NAMES:
        result = results.get(name, {})
        for goal in result.get("goals", ()):
            met = "met" if goal["met"] else "missed"
            lines.append(
                f"| {name} | {goal['name']} | {goal['op']} {goal['goal']:g} | {_figure(goal['value'])} | {met} |"
            )
        lines += [
            f"| {name} | {one['name']} | | {_figure(one['value'])} | |" for one in result.get("compared", ())
        ]
    return "\n".join(lines)


def origin(results: dict[str, Any]) -> str:
    """Which of them are of which commit and day, a line each."""
    measured: dict[str, list[str]] = {}
    for name in NAMES:
        if name in results:
            day = time.strftime("%Y-%m-%d", time.gmtime(results[name]["at"]))
            of = f"{results[name]['commit'] or 'no commit'}, {day}, {results[name]['machine']}"
            measured.setdefault(of, []).append(name)
    return "\n".join(f"{of}: {', '.join(names)}" for of, names in measured.items())


def _figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _commit() -> str:
    """The one that is checked out, with a + if something differs from it; empty outside of a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _measured() -> dict[str, object]:
    """Of what the results are, and when."""
    return {"machine": _machine(), "commit": _commit(), "at": int(time.time())}


def _machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"


if __name__ == "__main__":
    main()
