"""collector-cli as a process: exit codes, what it imports, pipes, signals, terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector.cli.main import COMMANDS
from collector.core.status import Event, EventKind
from collector.store.schema import upgrade
from collector.store.ssh_known_hosts import load_known_hosts
from collector.store.store import open_store
from fleetpulse.model import State
from tests.collector.cli_process import SCRIPT, environment, run_cli
from tests.collector.fleet import MINUTE, Fleet, failing
from tests.mariadb_server import MariadbServer
from tests.ssh_server import SshServer

NOT_NEEDED = (
    "asyncssh",
    "grpc",
    "google.protobuf",
    "rich",
    "structlog",
    "psutil",
    "MySQLdb",
    "fleetpulse.v1",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def fleet(url: str) -> Iterator[Fleet]:
    store = open_store(url, pool_size=2, create=True)
    upgrade(store, lambda: 1)
    yield Fleet(store)
    store.close()


# --- exit codes and messages ---


def one_line(text: str, start: str = "collector-cli: ") -> bool:
    return text.startswith(start) and text.count("\n") == 1 and "Traceback" not in text


def test_stale_exit_codes(url: str, fleet: Fleet) -> None:
    assert run_cli(url, "stale").returncode == 3
    fleet.listen()
    assert run_cli(url, "stale").returncode == 0
    fleet.add("expected", ago=None)
    assert run_cli(url, "stale").returncode == 1
    fleet.add("gone", ago=5 * MINUTE)
    ran = run_cli(url, "stale")
    assert (ran.returncode, ran.stderr) == (2, "")
    assert ran.stdout.startswith("CRITICAL: 1 of 2 hosts silent: gone; 1 of unknown presence")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("stale", "--nonsense"),
        ("stale", "--older-than", "5 parsecs"),
        ("status", "--limit", "many"),
        ("show",),
        ("remove",),
        ("db", "nonsense"),
        (),
    ],
)
def test_a_wrong_command_line_is_unknown(url: str, arguments: tuple[str, ...]) -> None:
    ran = run_cli(url, *arguments)
    assert ran.returncode == 3
    assert "Usage: collector-cli" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "command", [["stale"], ["status"], ["hosts"], ["show", "x"], ["events"], ["remove", "x"]]
)
def test_a_database_that_is_not_there(url: str, command: list[str]) -> None:
    ran = run_cli(url, *command)
    assert ran.returncode == 3
    assert one_line(ran.stderr)
    assert "run: collector-cli db upgrade" in ran.stderr


def test_a_wrong_configuration(tmp_path: Path) -> None:
    ran = run_cli(None, "--config", str(tmp_path / "none.toml"), "stale")
    assert ran.returncode == 3
    assert one_line(ran.stderr)
    (tmp_path / "wrong.toml").write_text("databse = 'x'\n")
    ran = run_cli(None, "stale", FLEETPULSE_CONFIG=str(tmp_path / "wrong.toml"))
    assert ran.returncode == 3
    assert one_line(ran.stderr)
    assert "line 1: databse: no such key; did you mean database?" in ran.stderr


def test_config_file_and_environment(tmp_path: Path, url: str, fleet: Fleet) -> None:
    fleet.listen()
    path = tmp_path / "c.toml"
    path.write_text(f'database = "{url}"\n')
    assert run_cli(None, "--config", str(path), "stale").returncode == 0
    assert run_cli(None, "stale", FLEETPULSE_CONFIG=str(path)).returncode == 0


def test_an_unreachable_server() -> None:
    pytest.importorskip("MySQLdb")
    ran = run_cli("mysql://root@/x?unix_socket=/nonexistent", "stale")
    assert ran.returncode == 3
    assert one_line(ran.stderr, "collector-cli: database: ")


def test_db_upgrade_and_check(url: str) -> None:
    ran = run_cli(url, "db", "check")
    assert ran.returncode == 3
    ran = run_cli(url, "db", "upgrade")
    assert (ran.returncode, ran.stdout) == (
        0,
        "".join(f"applied schema version {number}\n" for number in (1, 2, 3, 4))
        + "the database has schema version 4\n",
    )
    assert run_cli(url, "db", "upgrade").stdout == "the database has schema version 4\n"
    ran = run_cli(url, "db", "check", "--json")
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["stored_version"] == 4


def test_another_schema_version(url: str, fleet: Fleet) -> None:
    with fleet.store.transaction() as tx:
        tx.execute("INSERT INTO schema_version (version, applied_at) VALUES (999, 1)")
    ran = run_cli(url, "db", "check")
    assert ran.returncode == 2
    assert ran.stdout.startswith("CRITICAL: the database has schema version 999, newer than")
    ran = run_cli(url, "stale")
    assert ran.returncode == 3
    assert one_line(ran.stderr)


def test_remove_needs_yes_without_a_terminal(url: str, fleet: Fleet) -> None:
    fleet.add("one")
    ran = run_cli(url, "remove", "one")
    assert (ran.returncode, ran.stderr) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    assert run_cli(url, "remove", "one", "--yes").returncode == 0


def test_help_and_version(url: str) -> None:
    ran = run_cli(url, "--version")
    assert ran.returncode == 0
    assert re.fullmatch(r"collector-cli, version \d+\.\d+\.\d+(\.dev\d+)?\n", ran.stdout)
    ran = run_cli(url, "--help")
    assert ran.returncode == 0
    assert all(f"  {name} " in ran.stdout for name in COMMANDS)


# --- imports ---


def imported(url: str, *arguments: str) -> set[str]:
    """The names of all modules that a run loads."""
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('\\n'.join(sys.modules), file=sys.stderr))\n"
        "from collector.cli.main import main\nmain()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ran.stderr
    return set(ran.stderr.split())


def unneeded(modules: set[str]) -> list[str]:
    return sorted(m for m in modules if any(m == name or m.startswith(f"{name}.") for name in NOT_NEEDED))


def test_help_loads_no_command(url: str) -> None:
    modules = imported(url, "--help")
    assert unneeded(modules) == []
    assert not any(
        m.startswith(("collector.store", "collector.config", "msgspec", "sqlite3")) for m in modules
    )


@pytest.mark.parametrize(
    "command", [["stale"], ["stale", "--json"], ["status"], ["hosts"], ["show", "one"], ["events"]]
)
def test_reading_loads_only_what_it_needs(url: str, fleet: Fleet, command: list[str]) -> None:
    fleet.listen()
    fleet.add("one", ago=5 * MINUTE)
    modules = imported(url, *command)
    assert "sqlite3" in modules
    assert unneeded(modules) == []
    loaded = {
        m for m in modules if m.startswith("collector.cli.") and m.removeprefix("collector.cli.") in COMMANDS
    }
    assert f"collector.cli.{command[0]}" in loaded
    assert "collector.cli.doctor" not in loaded


def test_a_server_needs_its_driver(mariadb: MariadbServer) -> None:
    modules = imported(mariadb.fresh_database(), "stale")
    assert {m.split(".")[0] for m in unneeded(modules)} == {"MySQLdb"}
    assert "sqlite3" not in modules


# --- pipes and signals ---


def test_a_reader_that_leaves(url: str, fleet: Fleet) -> None:
    for number in range(30):
        fleet.add(f"host-{number}", address="x" * 250, agent_version="y" * 250)
    with subprocess.Popen(
        [SCRIPT, "hosts", "--json"], env=environment(url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@contextmanager
def running(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [SCRIPT, *arguments],
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with process:
            yield process
    finally:
        if process.poll() is None:
            process.kill()


def test_watching_in_a_pipe(url: str, fleet: Fleet) -> None:
    fleet.listen()
    with running(url, "stale", "--watch", "--interval", "100ms", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["state"] == "OK"
        fleet.add("gone", ago=5 * MINUTE)
        for shown in process.stdout:
            if json.loads(shown)["state"] == "CRITICAL":
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (0, "")


def test_following_events(url: str, fleet: Fleet) -> None:
    fleet.listen()
    host, _ = fleet.add("one")
    fleet.event(host, "one", Event(fleet.now - 10 * MINUTE, EventKind.FACT, "before"))
    # The same moment, written out of the order of their numbers: what a cluster does.
    with running(url, "events", "--follow", "--json", "--interval", "100ms") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["subject"] == "before"
        subjects = []
        for number in (900, 20, 800, 10):
            with fleet.store.transaction() as tx:
                tx.execute(
                    "INSERT INTO event (id, at, host, hostname, kind, subject, instance, old_value, new_value, "
                    "message, measured_at) VALUES (%s, %s, %s, 'one', 'fact', %s, '', '', '', '', 0)",
                    (number, fleet.now - number * 10, host, f"e{number}"),
                )
            subjects.append(json.loads(process.stdout.readline())["subject"])
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert subjects == ["e900", "e20", "e800", "e10"]
    assert (process.returncode, rest, errors.strip()) == (0, "", "")


def test_watching_outlives_the_database(mariadb: MariadbServer) -> None:
    url = mariadb.fresh_database()
    store = open_store(url, pool_size=1)
    upgrade(store, lambda: 1)
    Fleet(store).listen()
    store.close()
    with running(url, "stale", "--watch", "--interval", "100ms", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["state"] == "OK"
        mariadb.stop()
        assert "trying again" in process.stderr.readline()
        mariadb.start()
        while not json.loads(process.stdout.readline())["listening_since"]:
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture
def names(tmp_path: Path) -> str:
    path = tmp_path / "names"
    path.write_text("web-1\nweb-2\n")
    return str(path)


def test_waiting_for_hosts_in_a_pipe(url: str, fleet: Fleet, names: str) -> None:
    fleet.listen()
    fleet.add("web-1")
    with running(url, "hosts", "await", names, "--timeout", "50s") as process:
        fleet.add("web-2")
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (0, "OK: all 2 hosts report\n", "")


# --- terminals ---


class Terminal:
    """A process on a terminal of 100 columns and 30 lines."""

    def __init__(self, url: str, *arguments: str, **extra: str):
        self.text = ""
        self._fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        # The terminal must be the process's own, so that a Ctrl-C typed there is a signal.
        take_it = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(*sys.argv[1:2], sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", take_it, SCRIPT, *arguments],
            env=environment(url, TERM="xterm-256color", **extra),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        self.pid = self._process.pid
        os.close(inside)

    def read_until(self, found: Callable[[str], object]) -> None:
        deadline = time.monotonic() + 30
        while not found(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._fd], [], [], 0.1)[0] and not self._read():
                assert found(self.text), self.text
                return

    def _read(self) -> bool:
        try:
            self.text += os.read(self._fd, 65536).decode()
        except OSError:  # the other end is closed
            return False
        return True

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        """Read what is left; the exit code."""
        while self._read():
            pass
        os.close(self._fd)
        return self._process.wait(30)


def test_a_terminal_gets_colours(url: str, fleet: Fleet) -> None:
    fleet.listen()
    fleet.add("\x1b[5mblink [red]", ago=5 * MINUTE)
    terminal = Terminal(url, "stale")
    assert terminal.end() == 2
    assert "\x1b[1;31mCRITICAL" in terminal.text
    assert "\\x1b[5mblink [red]" in terminal.text
    assert "\x1b[5m" not in terminal.text


@pytest.mark.parametrize(("arguments", "extra"), [(("--no-color",), {}), ((), {"NO_COLOR": "1"})])
def test_colours_can_be_switched_off(
    url: str, fleet: Fleet, arguments: tuple[str, ...], extra: dict[str, str]
) -> None:
    fleet.listen()
    fleet.add("gone", ago=5 * MINUTE)
    terminal = Terminal(url, *arguments, "stale", **extra)
    assert terminal.end() == 2
    assert "gone" in terminal.text
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][;m]", terminal.text)


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_watching_redraws_and_restores_the_terminal(url: str, fleet: Fleet, with_signal: int) -> None:
    fleet.listen()
    for number in range(60):
        fleet.add(f"bad-{number:02}", checks=failing(State.WARNING, "x", 1))
    terminal = Terminal(url, "status", "--watch", "--interval", "100ms", "--limit", "60")
    terminal.read_until(lambda text: "60 warning" in text)
    fleet.add("worst", checks=failing(State.CRITICAL, "full", 1))
    terminal.read_until(lambda text: "1 critical, 60 warning" in text)
    if with_signal == signal.SIGINT:
        terminal.type("\x03")
    else:
        os.kill(terminal.pid, with_signal)
    assert terminal.end() == 0
    assert "\x1b[?1049h" in terminal.text  # the alternate screen
    assert terminal.text.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h"))
    assert "more hosts not OK" in terminal.text


def test_waiting_for_hosts_says_how_far_it_is(url: str, fleet: Fleet, names: str) -> None:
    fleet.listen()
    fleet.add("web-1")
    terminal = Terminal(url, "hosts", "await", names, "--timeout", "50s")
    terminal.read_until(lambda text: re.search(r"\r\x1b\[K1 of 2 report, \d\ds left\r", text))
    fleet.add("web-2")
    assert terminal.end() == 0
    assert "\n" not in terminal.text.rstrip(), "the line is redrawn in place"
    assert re.search(r"left\r\x1b\[K(\x1b\[[0-9;]*m)*OK[^\r]*: all 2 hosts report\r\n$", terminal.text)


def test_waiting_for_hosts_outlives_the_database(mariadb: MariadbServer, names: str) -> None:
    url = mariadb.fresh_database()
    store = open_store(url, pool_size=1)
    upgrade(store, lambda: 1)
    store.close()
    terminal = Terminal(url, "hosts", "await", names, "--timeout", "50s")
    terminal.read_until(lambda text: "0 of 2 report, no collector is listening, " in text)
    mariadb.stop()
    terminal.read_until(lambda text: "trying again" in text)
    assert "left\r\x1b[Kcollector-cli: database: " in terminal.text
    mariadb.start()
    store = open_store(url, pool_size=1)
    fleet = Fleet(store)
    fleet.listen()
    for name in ("web-1", "web-2"):
        fleet.add(name)
    store.close()
    assert terminal.end() == 0
    assert "all 2 hosts report" in terminal.text


def test_waiting_for_hosts_can_be_broken_off(url: str, fleet: Fleet, names: str) -> None:
    fleet.listen()
    terminal = Terminal(url, "hosts", "await", names, "--timeout", "50s")
    terminal.read_until(lambda text: "0 of 2 report" in text)
    terminal.type("\x03")
    assert terminal.end() == 130
    assert terminal.text.endswith("\r\x1b[K\r\n")
    assert "Traceback" not in terminal.text


def test_remove_asks_on_a_terminal(url: str, fleet: Fleet) -> None:
    fleet.add("one")
    terminal = Terminal(url, "remove", "one")
    terminal.read_until(lambda text: "Remove 1 host? [y/N]" in text)
    terminal.type("n\n")
    assert terminal.end() == 3
    assert "nothing was changed" in terminal.text
    terminal = Terminal(url, "remove", "one")
    terminal.read_until(lambda text: "Remove 1 host? [y/N]" in text)
    terminal.type("y\n")
    assert terminal.end() == 0
    assert "removed one" in terminal.text


def test_a_key_is_trusted_if_somebody_says_so(url: str, fleet: Fleet, tmp_path: Path) -> None:
    with SshServer(tmp_path, b"") as server:
        run_cli(url, "ssh", "add", "web-1", "--address", "127.0.0.1", "--port", str(server.port))
        for answer, status, trusted in (("n", 3, 0), ("", 3, 0), ("y", 0, 1)):
            terminal = Terminal(url, "ssh", "trust", "web-1")
            terminal.read_until(lambda text: "Trust 1 key of 1 host? [y/N]" in text)
            assert server.host_key.get_fingerprint() in terminal.text
            terminal.type(f"{answer}\n")
            assert terminal.end() == status
            with fleet.store.transaction(write=False) as tx:
                assert len(load_known_hosts(tx)) == trusted


def test_who_shows_no_key_is_part_of_the_question(url: str, fleet: Fleet, tmp_path: Path) -> None:
    with SshServer(tmp_path, b"") as server:
        for name, port in (("web-1", server.port), ("web-2", 1)):
            run_cli(url, "ssh", "add", name, "--address", "127.0.0.1", "--port", str(port))
        terminal = Terminal(url, "ssh", "trust", "--untrusted")
        terminal.read_until(lambda text: "Trust 1 key of 1 host, without web-2? [y/N]" in text)
        assert "asking 2 hosts ..." in terminal.text
        assert "127.0.0.1:1 " in terminal.text
        terminal.type("n\n")
        assert terminal.end() == 3


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (("remove",), "Remove 1 host?"),
        (("revoke",), "Revoke the certificates of 1 host?"),
        (("rebind",), r"Let this machine go on as \x1b[5mevil\x9b5m\u202e\x07?"),
    ],
)
def test_a_question_does_nothing_to_the_terminal(
    url: str, fleet: Fleet, arguments: tuple[str, ...], question: str
) -> None:
    evil = "\x1b[5mevil\x9b5m\u202e\x07"
    _, old = fleet.add(evil, ago=5 * MINUTE, address=evil)
    _, new = fleet.add("one", address=evil)
    ids = (old.host_id, new.host_id) if arguments == ("rebind",) else (old.host_id,)
    terminal = Terminal(url, *arguments, *ids)
    terminal.read_until(lambda text: f"{question} [y/N]" in text)
    terminal.type("n\n")
    assert terminal.end() == 3
    assert "nothing was changed" in terminal.text
    assert all(line.isprintable() for line in terminal.text.replace("\r", "").split("\n")), terminal.text
    assert r"\x1b[5mevil\x9b5m\u202e\x07" in terminal.text


def test_two_removers_at_once(url: str, fleet: Fleet) -> None:
    fleet.add("one")
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(run_cli(url, "remove", "one", "--yes").returncode))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) <= {0, 3}
    with fleet.store.transaction() as tx:
        assert tx.query("SELECT COUNT(*) FROM event WHERE kind = 'removed'") == [(1,)]
