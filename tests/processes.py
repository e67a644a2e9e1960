"""Real processes for tests: the collector, agents, simulated fleets, and the admin's command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from bench.enrolled_host import Enroller
from collector.cli.main import run
from collector.store.store import Store, open_store
from tests.ports import free_ports

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
_Result = TypeVar("_Result")
_one_inside = threading.Lock()  # the environment and the standard output are the whole process's


class Installation(NamedTuple):
    """Programs, and the folder of the packages that they run."""

    programs: Path
    packages: Path


CHECKOUT = Installation(PROGRAMS, ROOT)


def wait_until(condition: Callable[[], _Result], *, seconds: float = 60, what: str = "") -> _Result:
    """Wait until the condition holds; what it then returned. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what or condition}; last seen: {result!r}")
        time.sleep(0.03)


def clean_environ(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment without any fleetpulse setting but those given."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPULSE")}
    return environ | {"PYTHONPATH": str(ROOT), **settings}


class Program:
    """A running process that logs into a file."""

    def __init__(self, command: list[str], settings: dict[str, str], log: Path):
        self.log_path = log
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            command,
            env=clean_environ(settings),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for_log(self, text: str, seconds: float = 60) -> str:
        """The first logged line with `text` in it."""

        def line() -> str | None:
            found = next((line for line in self.log.splitlines() if text in line), None)
            if found is None and not self.is_running:
                pytest.fail(f"ended with {self._process.returncode} before it logged {text!r}:\n{self.log}")
            return found

        return wait_until(line, seconds=seconds, what=f"{text!r} in {self.log_path}") or ""

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no chance to do anything."""
        self._process.kill()
        self._process.wait()

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, and the exit code."""
        if self.is_running:
            self._process.terminate()
        return self.wait(seconds)

    def wait(self, seconds: float = 60) -> int:
        """The exit code of a process that ends by itself."""
        return self._process.wait(seconds)

    def output(self, seconds: float = 150) -> str:
        """All that it printed until it ended by itself."""
        out, _ = self._process.communicate(timeout=seconds)
        return str(out, "utf-8")

    def close(self) -> None:
        if self.is_running:
            self._process.kill()
        self._process.communicate()
        self._log.close()


class Site:
    """A database, and everything that runs on it in one test.

    Collectors and agents speak in plaintext, unless a collector is started with tls="on".
    All are those of the checkout, except while `using` another installation.
    """

    def __init__(self, database_url: str, folder: Path, stack: ExitStack, upgrade_url: str = ""):
        self.database_url = database_url
        self.upgrade_url = upgrade_url or database_url
        self.folder = folder
        self.address = ""
        self.enroll_address = ""
        """Where machines enrol; empty as long as no collector with TLS was started."""
        self.identity_dir = folder / "identity"
        self.settings: dict[str, str] = {}
        """More variables of the environment for the collector and its commands."""
        self._installation = CHECKOUT
        self._ca_fingerprint = ""
        self._stack = stack
        self._started = 0

    @contextmanager
    def using(self, installation: Installation) -> Iterator[None]:
        """What is run or started meanwhile is of that installation; what already runs is not touched."""
        before, self._installation = self._installation, installation
        try:
            yield
        finally:
            self._installation = before

    def _program(self, name: str) -> str:
        return str(self._installation.programs / name)

    @property
    def _packages(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self._installation.packages)}

    def cli(self, *arguments: str, check: bool = False, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run collector-cli."""
        done = subprocess.run(
            [self._program("collector-cli"), *arguments],
            env=clean_environ({**self._packages, **self._common_settings, **settings}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"collector-cli {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @property
    def _common_settings(self) -> dict[str, str]:
        """Of the collector and of its commands."""
        return {
            "FLEETPULSE_DATABASE": self.database_url,
            "FLEETPULSE_IDENTITY_DIR": str(self.identity_dir),
            "FLEETPULSE_TLS": "on" if self.has_tls else "off",
            "FLEETPULSE_LISTEN": self.address or "127.0.0.1:0",
            **self.settings,
        }

    @property
    def has_tls(self) -> bool:
        """Whether the collector speaks TLS."""
        return bool(self.enroll_address)

    @property
    def ca_bundle(self) -> Path:
        """The CA certificates."""
        return self.identity_dir / "ca.pem"

    @property
    def ca_fingerprint(self) -> str:
        """What a machine has to know to enrol; as it was when it was asked for first."""
        if not self._ca_fingerprint:
            self._ca_fingerprint = str(self.json("ca", "show")["fingerprint"])
        return self._ca_fingerprint

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json.

        That of the checkout runs in this process: tests look again and again, and a process for each look
        takes longer than what they wait for.
        """
        said = self._said(*arguments, "--json")
        assert said, f"{arguments} printed nothing"
        return json.loads(said)

    def upgrade(self) -> None:
        """Make the schema, by the account that may."""
        self._said("db", "upgrade", FLEETPULSE_DATABASE=self.upgrade_url)

    def open_store(self) -> Store:
        """The site's database, as its collector uses it; to be closed."""
        return open_store(self.database_url, pool_size=1)

    def _said(self, *arguments: str, **settings: str) -> str:
        """What collector-cli prints, whatever its exit code."""
        if self._installation == CHECKOUT:
            return self._inside({**self._common_settings, **settings}, *arguments)
        return self.cli(*arguments, check=False, **settings).stdout

    @staticmethod
    def _inside(values: dict[str, str], *arguments: str) -> str:
        said = io.StringIO()
        with _one_inside, pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
            for name in os.environ.keys() - clean_environ({}).keys():
                patch.delenv(name)
            for name, value in values.items():
                patch.setenv(name, value)
            run(list(arguments))
        return said.getvalue()

    def collector(self, *, upgrade: bool = True, **settings: str) -> Program:
        """Start a collector on a free port, with FLEETPULSE_<settings>; returns when it listens.

        The next one gets the same port, unless `address` is emptied before.
        """
        if upgrade:
            self.upgrade()
        if not self.address:
            self.address = f"127.0.0.1:{free_ports()[0]}"
        if settings.get("tls") == "on" and not self.has_tls:
            self.address, self.enroll_address = (f"127.0.0.1:{port}" for port in free_ports())
        program = self.start_collector(**settings)
        self.address = json.loads(program.wait_for_log('"listening"'))["address"]
        return program

    def start_collector(self, **settings: str) -> Program:
        """Start a collector that may not get as far as to listen."""
        values = {
            **self._packages,
            **self._common_settings,
            "FLEETPULSE_LOG_FORMAT": "json",
            **{f"FLEETPULSE_{name.upper()}": value for name, value in settings.items()},
        }
        return self.start("collector", [self._program("fleet-collector")], values)

    def agent(self, name: str = "agent", **settings: str) -> Program:
        """Start an agent; `name` also names its state directory, so that it can be started again."""
        return self.start(name, [self._program("fleet-agent"), "run"], self.agent_environ(name, **settings))

    def agent_environ(self, name: str, **settings: str) -> dict[str, str]:
        """What an agent of that name is told. With TLS it reports to where it has enrolled."""
        return {
            **self._packages,
            **({} if self.has_tls else {"FLEETPULSE_AGENT_COLLECTOR": self.address}),
            "FLEETPULSE_AGENT_TLS": "on" if self.has_tls else "off",
            "FLEETPULSE_AGENT_STATE_DIR": str(self.folder / name),
            "FLEETPULSE_AGENT_INTERVAL": "500ms",
            # A machine that stands still for seconds makes nobody silent: who tests silence says so.
            "FLEETPULSE_AGENT_TTL": "60s",
            "FLEETPULSE_AGENT_HOSTNAME": name,
            **{f"FLEETPULSE_AGENT_{key.upper()}": value for key, value in settings.items()},
        }

    def token(self, *options: str) -> str:
        """Make a token."""
        return str(self.json("token", "create", *options)["token"])

    def enroll(
        self,
        name: str,
        *options: str,
        token: str = "",
        fingerprint: str = "",
        check: bool = True,
        **settings: str,
    ) -> subprocess.CompletedProcess[str]:
        """Enrol the machine of the agent `name`; by default with a token for it."""
        file = self.folder / f"{name}.token"
        file.touch(0o600)
        file.write_text(token or self.token("--host", name))
        command = [self._program("fleet-agent"), "enroll", "--collector", self.address]
        done = subprocess.run(
            [
                *command,
                "--token-file",
                file,
                "--ca-fingerprint",
                fingerprint or self.ca_fingerprint,
                *options,
            ],
            env=clean_environ(self.agent_environ(name, **settings)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{name} cannot enrol: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def enroller(self) -> Enroller:
        """What makes hosts of those that a test simulates itself."""
        token = self.token("--uses", "10000")
        return Enroller(self.enroll_address, token, self.ca_fingerprint, self.folder / "simulated")

    def enrolment_options(self) -> list[str]:
        """How simulated hosts of other processes enrol, as many as a test may have."""
        token_file = self.folder / "simulated.token"
        if not token_file.exists():
            token_file.touch(0o600)
            token_file.write_text(self.token("--uses", "10000", "--ttl", "7d"))
        return [
            *("--enroll", self.enroll_address, "--token-file", str(token_file)),
            *("--ca-fingerprint", self.ca_fingerprint, "--state-dir", str(self.folder / "simulated")),
        ]

    def fleet(self, hosts: int, *options: str) -> Program:
        """Start simulated hosts, which end after their --seconds or with SIGTERM, all delivered."""
        command = [
            sys.executable,
            "-m",
            "bench.simulator",
            "--collector",
            self.address,
            "--hosts",
            str(hosts),
            "--drain",
            "60",
            *(self.enrolment_options() if self.has_tls else ()),
        ]
        return self.start("fleet", [*command, *options], {})

    def start(self, name: str, command: list[str], settings: dict[str, str] | None = None) -> Program:
        """Start anything else, with a log in the site's folder."""
        self._started += 1
        program = Program(command, settings or {}, self.folder / f"{self._started}-{name}.log")
        self._stack.callback(program.close)
        return program


@contextmanager
def running_site(database_url: str, folder: Path, upgrade_url: str = "") -> Iterator[Site]:
    """A site whose processes are all gone afterwards.

    `upgrade_url` is the database's address for the account that makes the schema, if that is another.
    """
    with ExitStack() as stack:
        yield Site(database_url, folder, stack, upgrade_url)
