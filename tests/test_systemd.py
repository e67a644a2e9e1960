"""What systemd is told: by real programs, over a socket like its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetpulse.systemd import ALIVE, READY, Notifier, logs_to_journal, status, with_priority
from tests.processes import PROGRAMS, Program, Site, wait_until


class Manager:
    """Hears what services say."""

    def __init__(self, folder: Path):
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)
        self._heard: list[str] = []

    @property
    def heard(self) -> list[str]:
        """Every line until now."""
        while True:
            try:
                self._heard += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    listening = Manager(tmp_path)
    yield listening
    listening.close()


def test_without_systemd_nothing_is_said() -> None:
    notifier = Notifier({})
    notifier.tell(READY)
    assert notifier.watchdog is None


def test_a_manager_that_is_gone_or_does_not_read_holds_nobody_up(manager: Manager, tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}).tell(READY)
    notifier = Notifier({"NOTIFY_SOCKET": manager.path})
    for _ in range(10_000):
        notifier.tell(ALIVE)


def test_abstract_sockets_are_written_with_an_at() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0fleetpulse-{os.getpid()}")
        Notifier({"NOTIFY_SOCKET": f"@fleetpulse-{os.getpid()}"}).tell(READY, status("two\nlines"))
        assert listening.recv(100) == b"READY=1\nSTATUS=two lines"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_it_names(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", **environ}).watchdog == seconds


def journal(folder: Path, name: str) -> tuple[Path, dict[str, str]]:
    """A file that a program takes for a stream of the journal if its standard error is that."""
    path = folder / name
    path.touch()
    return path, {"JOURNAL_STREAM": f"{path.stat().st_dev}:{path.stat().st_ino}"}


def test_the_journal_is_told_the_level_of_each_line(sqlite_site: Site, tmp_path: Path) -> None:
    sqlite_site.collector()
    path, variables = journal(tmp_path, "agent")
    values = {**sqlite_site.agent_environ("one"), **variables}
    program = Program([str(PROGRAMS / "fleet-agent"), "run"], values, path)
    wait_until(lambda: "reports to" in program.log, what="the first line")
    program.signal(signal.SIGHUP)
    program.stop()
    program.close()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("<6>agent ")
    assert all(line.startswith("<6>") for line in lines)
    path, variables = journal(tmp_path, "collector")
    settings = {"FLEETPULSE_DATABASE": sqlite_site.database_url, "FLEETPULSE_TLS": "off", **variables}
    settings["FLEETPULSE_LISTEN"] = f"unix:{tmp_path}/socket"
    program = Program([str(PROGRAMS / "fleet-collector")], settings, path)
    line = program.wait_for_log('"listening"')
    program.stop()
    program.close()
    assert line.startswith('<6>{"')


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_levels_are_those_of_syslog(level: int, priority: int) -> None:
    assert with_priority(level, "one\ntwo") == f"<{priority}>one\n<{priority}>two"


def test_other_streams_are_no_journal(tmp_path: Path) -> None:
    assert not logs_to_journal({})
    assert not logs_to_journal({"JOURNAL_STREAM": "1:2"})


def expect_a_life(manager: Manager, program: Program) -> None:
    wait_until(lambda: manager.heard.count(ALIVE) >= 3, what="signs of life")
    assert manager.heard.index(READY) >= 0
    assert any(line.startswith("STATUS=") for line in manager.heard)
    assert "STOPPING=1" not in manager.heard
    assert program.stop() == 0
    assert "STOPPING=1" in manager.heard


def test_the_collector_says_when_it_listens_lives_and_ends(sqlite_site: Site, manager: Manager) -> None:
    sqlite_site.settings |= {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "300000"}
    expect_a_life(manager, sqlite_site.collector())


def test_the_agent_says_when_it_runs_lives_and_ends(sqlite_site: Site, manager: Manager) -> None:
    sqlite_site.collector()
    values = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "300000", **sqlite_site.agent_environ("one")}
    agent = sqlite_site.start("one", [str(PROGRAMS / "fleet-agent"), "run"], values)
    acknowledged = f"STATUS=reports to {sqlite_site.address}, acknowledged"
    wait_until(lambda: acknowledged in manager.heard, what="the first report's acknowledgement")
    assert manager.heard.index(READY) < manager.heard.index(acknowledged)
    expect_a_life(manager, agent)
