"""A real collector on a database, and the load that drives it or an echo; what either costs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.usage import cpu_seconds

_PROGRAMS = Path(sys.executable).parent
_START_PATIENCE = 30.0  # seconds
_COMMAND_PATIENCE = 60.0
_STOP_PATIENCE = 60.0
_LOAD_PATIENCE = 300.0  # beside warm-up and window: to enrol, to connect, and for what is late at the end


def run_load(
    address: str, pids: dict[str, int], arguments: argparse.Namespace, *options: str, streams: int = 0
) -> dict[str, float]:
    """Drive one server; reports a second, latency, and each process's CPU time per report in us.

    Raises SystemExit if the load fails or does not end in time.
    """
    command = [sys.executable, "-m", "bench.load", address, "--streams", str(streams or arguments.streams)]
    command += ["--seconds", str(arguments.seconds), "--warm-up", str(arguments.warm_up), *options]
    patience = _LOAD_PATIENCE + arguments.seconds + arguments.warm_up
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load,
        _killed_after(patience, load),
    ):
        result, used = _listen(load, pids)
        load.wait()
    if load.returncode != 0 or not result:
        raise SystemExit(f"the load on {address} ended with {load.returncode}, after at most {patience:g} s")
    acked = result["acked"]
    figures = {
        "reports_per_s": acked / result["seconds"],
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
    }
    return figures | {f"{name}_us": seconds / acked * 1e6 for name, seconds in used.items()}


@contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill it when the time is up, and when what is done with it fails."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()


def _listen(load: subprocess.Popen[str], pids: dict[str, int]) -> tuple[dict[str, Any], dict[str, float]]:
    """A load's result, empty if it has none, and how many seconds of CPU each process used in its window."""
    assert load.stdout is not None
    used = dict.fromkeys(pids, 0.0)
    result: dict[str, Any] = {}
    for line in load.stdout:
        said = json.loads(line)
        if said["at"] == "result":
            result = said
            continue
        sign = -1 if said["at"] == "begin" else 1
        for name, pid in pids.items():
            used[name] += sign * cpu_seconds(pid)
    return result, used


class Collector(NamedTuple):
    """One that runs: where it listens, its process, and how its commands find it."""

    address: str
    enroll_address: str
    pid: int
    environ: dict[str, str]

    def ask(self, *arguments: str) -> Any:
        """What one of its commands answers."""
        command: list[str | Path] = [_PROGRAMS / "collector-cli", *arguments, "--json"]
        return json.loads(subprocess.check_output(command, env=self.environ, timeout=_COMMAND_PATIENCE))

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
    """A real collector on a database with a fresh schema, in plaintext unless the settings say otherwise.

    Raises SystemExit if it does not start, or does not stop in order. If what is done with it fails, it is killed,
    and the end of its log is written to standard error.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE")}
    environ |= {
        "FLEETPULSE_DATABASE": url,
        "FLEETPULSE_LISTEN": "127.0.0.1:0",
        "FLEETPULSE_TLS": "off",
        "FLEETPULSE_LOG_FORMAT": "json",
    }
    environ |= {f"FLEETPULSE_{key.upper()}": str(value) for key, value in settings.items()}
    upgrade: list[str | Path] = [_PROGRAMS / "collector-cli", "db", "upgrade"]
    subprocess.run(upgrade, env=environ, check=True, stdout=subprocess.DEVNULL, timeout=_COMMAND_PATIENCE)
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([_PROGRAMS / "fleet-collector"], env=environ, stderr=log) as service,
    ):
        try:
            listening = _listening(service, log)
            yield Collector(listening["address"], listening["enroll_address"], service.pid, environ)
        except BaseException:
            service.kill()
            sys.stderr.write(_tail(log))
            raise
        _stop(service, log)


def _listening(service: subprocess.Popen[bytes], log: IO[str]) -> dict[str, Any]:
    deadline = time.monotonic() + _START_PATIENCE
    while time.monotonic() < deadline and service.poll() is None:
        log.seek(0)
        for line in log:
            if '"listening"' in line:
                said: dict[str, Any] = json.loads(line)
                return said
        time.sleep(0.05)
    raise SystemExit("the collector does not start")


def _stop(service: subprocess.Popen[bytes], log: IO[str]) -> None:
    """In order, else at once. Raises SystemExit if it was not in order."""
    service.send_signal(signal.SIGTERM)
    try:
        code = service.wait(_STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        service.kill()
        code = service.wait()
    if code != 0:
        raise SystemExit(f"the collector ended with {code}:\n{_tail(log)}")


def _tail(log: IO[str]) -> str:
    """The last 4,000 characters."""
    log.seek(0)
    return log.read()[-4000:]
