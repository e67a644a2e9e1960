#!/usr/bin/env python3
"""A small fleet to look at: a collector on SQLite, this machine's agent and simulated hosts.

They speak TLS, and each has enrolled with a token, as everywhere else. Everything lives under var/demo/ and
starts empty. Without an argument the fleet is shown live until
Ctrl-C; with a number of seconds the demo ends by itself and prints what it found.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent
FIRST_PORT = 18443
PORTS = 100
INTERVAL = 2  # seconds between two reports of a host; it is silent after three of them
SIMULATED_HOSTS = 20
START_DEADLINE = 30.0  # seconds, for a part to do its first work
STOP_DEADLINE = 10.0  # seconds, for a part to end after SIGTERM
STATE_CODES = (0, 1, 2)  # what status and stale answer about a fleet; 3 is their own failure


class DemoError(Exception):
    """The demo cannot go on; the text says why and shows the end of the log."""


class Part:
    """One process of the demo and its log."""

    def __init__(self, name: str, command: list[str | Path], log: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            # A group of its own: Ctrl-C reaches the demo alone, which then stops the parts in order.
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    def require_running(self) -> None:
        """Raises DemoError when the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"{self.name} ended with exit code {code}{self.log_tail()}")

    def log_tail(self) -> str:
        """The end of the log, as the end of a message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
        return f"; the end of {_short(self.log)}:\n" + "\n".join(f"  {line}" for line in lines)

    def stop(self) -> None:
        """Ask to end, wait, insist."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not end within {STOP_DEADLINE:g} s of SIGTERM and was killed")
            self._process.kill()
            self._process.wait()


class Demo:
    """The folder of one demo and the processes that run in it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.address, self.enroll_address = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
        self.parts: list[Part] = []
        self.real_host = ""
        self._collector_config = folder / "collector.toml"
        self._agent_config = folder / "agent.toml"
        # What is set for a collector of the user's own must not reach this one.
        self._environ = {key: value for key, value in os.environ.items() if not key.startswith("FLEETPULSE")}
        self._environ["FLEETPULSE_CONFIG"] = str(self._collector_config)
        self._environ["FLEETPULSE_AGENT_CONFIG"] = str(self._agent_config)

    def start(self) -> None:
        """Start every part and wait until each has done its first work. Raises DemoError."""
        self._write_configuration()
        self._require(self.cli("db", "upgrade"), "the database could not be made")
        collector = self._start("collector", PROGRAMS / "fleet-collector")
        self._wait_for(collector, self._is_listening, f"is not listening on {self.address}")
        _say(f"collector listens on {self.address}, database {_short(self.folder / 'fleet.db')}")

        fingerprint = self._json("ca", "show")["fingerprint"]
        _say(f"machines enrol at {self.enroll_address}; the CA's fingerprint is {fingerprint[:16]}…")
        self._enroll_this_machine(fingerprint)
        agent = self._start("agent", PROGRAMS / "fleet-agent", "run")
        simulator = self._start(
            "simulator",
            *(sys.executable, "-m", "bench.simulator"),
            *("--collector", self.address, "--hosts", str(SIMULATED_HOSTS), "--interval", f"{INTERVAL}s"),
            *("--enroll", self.enroll_address, "--ca-fingerprint", fingerprint),
            *("--token-file", self._token("simulator", "--uses", str(SIMULATED_HOSTS))),
            *("--state-dir", self.folder / "simulator"),
            "--story",
        )
        self._wait_for(agent, lambda: bool(self._reporting("real")), "has not reported")
        [self.real_host] = self._reporting("real")
        _say(f"{self.real_host} is this machine, the real one (group real), reporting every {INTERVAL} s")
        self._wait_for(
            simulator, lambda: len(self._reporting("simulated")) == SIMULATED_HOSTS, "has not reported"
        )
        _say(f"sim-… are {SIMULATED_HOSTS} simulated hosts (group simulated); some go silent, some turn bad")

    def watch(self) -> None:
        """Show the fleet until the user has seen enough. Raises DemoError."""
        # In the foreground group, so that it owns the terminal and ends with Ctrl-C as well.
        with subprocess.Popen([*self._cli(), "status", "--watch"], env=self._environ, cwd=ROOT) as view:
            try:
                while view.poll() is None:
                    self._require_running()
                    time.sleep(0.2)
            finally:
                if view.poll() is None:
                    view.terminate()
        if view.returncode not in (*STATE_CODES, -signal.SIGINT, 128 + signal.SIGINT):
            raise DemoError(f"collector-cli status --watch ended with exit code {view.returncode}")

    def run_for(self, seconds: float) -> None:
        """Let the fleet live so long. Raises DemoError."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._require_running()
            time.sleep(min(0.2, left))

    def report(self) -> None:
        """Print what the fleet looks like. Raises DemoError."""
        for command in (["status"], ["stale"], ["events"]):
            print(f"\n$ collector-cli {' '.join(command)}", flush=True)
            code = subprocess.run(
                [*self._cli(), *command], env=self._environ, cwd=ROOT, check=False
            ).returncode
            if code not in STATE_CODES:
                raise DemoError(f"collector-cli {' '.join(command)} ended with exit code {code}")

    def stop(self) -> None:
        """Stop the parts: first those that send, last the collector that takes in what they have left."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave processes behind
        for part in reversed(self.parts):
            part.stop()

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run collector-cli on the demo's database."""
        return subprocess.run(
            [*self._cli(), *arguments],
            env=self._environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def _cli(self) -> list[str | Path]:
        return [PROGRAMS / "collector-cli"]

    def _enroll_this_machine(self, fingerprint: str) -> None:
        command: list[str | Path] = [PROGRAMS / "fleet-agent", "enroll", "--collector", self.address]
        command += ["--token-file", self._token("agent"), "--ca-fingerprint", fingerprint]
        done = subprocess.run(
            command, env=self._environ, cwd=ROOT, capture_output=True, text=True, check=False
        )
        self._require(done, "this machine could not enrol")
        _say(done.stdout.splitlines()[0])

    def _token(self, name: str, *options: str) -> Path:
        """A new token in a file of its own."""
        path = self.folder / f"{name}.token"
        path.touch(0o600)
        path.write_text(f"{self._json('token', 'create', *options)['token']}\n", encoding="ascii")
        return path

    def _json(self, *arguments: str) -> Any:
        done = self.cli(*arguments, "--json")
        self._require(done, f"collector-cli {' '.join(arguments)}")
        return json.loads(done.stdout)

    def _write_configuration(self) -> None:
        # Files rather than variables, so that the user can point the programs at them from another terminal.
        # A JSON string is a TOML string, too.
        self._collector_config.write_text(
            f"listen = {json.dumps(self.address)}\n"
            f"database = {json.dumps(f'sqlite:///{self.folder}/fleet.db')}\n"
            f"identity.dir = {json.dumps(str(self.folder / 'identity'))}\n"
            '\n[silence]\nsweep_interval = "500ms"\n',
            encoding="utf-8",
        )
        self._agent_config.write_text(
            f'interval = "{INTERVAL}s"\n'
            f"state_dir = {json.dumps(str(self.folder / 'agent'))}\n"
            'groups = ["real"]\n',
            encoding="utf-8",
        )

    def _start(self, name: str, *command: str | Path) -> Part:
        part = Part(name, list(command), self.folder / f"{name}.log", self._environ)
        self.parts.append(part)
        return part

    def _wait_for(self, part: Part, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while not condition():
            self._require_running()
            if time.monotonic() > deadline:
                raise DemoError(f"the {part.name} {otherwise} after {START_DEADLINE:g} s{part.log_tail()}")
            time.sleep(0.1)

    def _require_running(self) -> None:
        for part in self.parts:
            part.require_running()

    def _require(self, done: subprocess.CompletedProcess[str], otherwise: str) -> None:
        if done.returncode:
            raise DemoError(f"{otherwise}: {(done.stderr or done.stdout).strip()}")

    def _is_listening(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        return False

    def _reporting(self, group: str) -> list[str]:
        """The names of the group's hosts that have reported."""
        done = self.cli("hosts", "--json")
        if done.returncode not in STATE_CODES:
            raise DemoError(f"collector-cli hosts: {done.stderr.strip()}")
        hosts = json.loads(done.stdout)["hosts"]
        return [host["hostname"] for host in hosts if group in host["groups"] and host["last_report_at"]]


def free_port() -> int:
    """The default port, or the next pair on which nobody listens; machines enrol at the second. Raises DemoError."""
    for port in range(FIRST_PORT, FIRST_PORT + PORTS, 2):
        if _is_free(port) and _is_free(port + 1):
            return port
    raise DemoError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: the remains of closed connections do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


@contextlib.contextmanager
def fresh_folder(parent: Path) -> Iterator[Path]:
    """An empty var/demo/, or var/demo-2/ and so on while other demos of this tree run."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, PORTS):
        folder = parent / ("demo" if number == 1 else f"demo-{number}")
        lock = (parent / f".{folder.name}.lock").open("w")
        with lock:
            if not _locked(lock):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            return
    raise DemoError(f"{PORTS - 1} demos are running already")


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _show(demo: Demo, seconds: float | None) -> None:
    command = f".venv/bin/collector-cli --config {_short(demo.folder / 'collector.toml')}"
    _say(f"to look around from another terminal: {command} show {demo.real_host}")
    if seconds is None:
        demo.watch()
    else:
        _say(f"running for {seconds:g} s")
        demo.run_for(seconds)
        demo.report()


def main() -> int:
    """Exit code 0 when the demo ran, 1 when a part of it failed."""
    parser = argparse.ArgumentParser(description="Run a small fleet on this machine.")
    parser.add_argument("seconds", nargs="?", type=float, help="end by itself after so long")
    seconds = parser.parse_args().seconds
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with fresh_folder(ROOT / "var") as folder, contextlib.ExitStack() as stopping:
            demo = Demo(folder, free_port())
            stopping.callback(demo.stop)
            _say("starting")
            demo.start()
            _show(demo, seconds)
    except KeyboardInterrupt:
        pass  # how a live demo ends
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print()
    _say(f"stopped; logs and database are in {_short(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
