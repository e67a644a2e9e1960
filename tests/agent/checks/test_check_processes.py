from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from agent.checks.processes import Processes, ProcessesOptions, next_states, parse_created, parse_state
from fleetpulse.machine.processes import count
from fleetpulse.model import Measurement

TOTAL = Measurement("system.process.count", "{process}")
CREATED = Measurement("system.process.created", "{process}/s")


def state(name: str) -> Measurement:
    return Measurement(f"system.process.count{{process.state={name}}}", "{process}")


@pytest.mark.parametrize(
    ("stat", "letter"),
    [
        (b"1 (systemd) S 0 1 1 0 -1 4194560 98 ...", "S"),
        (b"77 (a) R (b) Z 1 77 77 0 -1", "Z"),
        (b"78 (new\nline) D 1 77 77 0 -1", "D"),
    ],
)
def test_a_name_may_look_like_a_state(stat, letter):
    assert parse_state(stat) == letter


def test_created_from_proc_stat():
    assert parse_created(b"cpu  1 2 3\nctxt 5\nbtime 17\nprocesses 6444\nprocs_running 1\n") == 6444


def test_count_by_state():
    values = count(Counter("SSIRZDTtP"))
    assert values == {
        TOTAL: 9,
        state("sleeping"): 3,
        state("running"): 1,
        state("defunct"): 1,
        state("blocked"): 1,
        state("stopped"): 2,
    }


def test_every_state_is_a_series_even_when_empty():
    assert count({}).keys() == count({"S": 1, "Z": 1}).keys()


def test_processes_take_turns():
    read: list[str] = []

    def reader(pid: str) -> str | None:
        read.append(pid)
        return "S"

    pids = [str(n) for n in range(10)]
    states = next_states({}, pids, 4, reader)
    assert read == pids  # all are new
    for expected in ("0123", "4567", "8901"):
        read.clear()
        states = next_states(states, pids, 4, reader)
        assert "".join(read) == expected
    assert len(states) == 10


def test_new_processes_are_read_at_once_and_gone_ones_forgotten():
    states = next_states({"1": "S", "2": "S", "3": "S"}, ["2", "3", "4"], 1, {"4": "Z"}.get)
    assert states == {"2": "S", "3": "S", "4": "Z"}


def test_a_process_that_ends_while_it_is_read_is_not_counted():
    assert next_states({}, ["1", "2"], 9, {"1": "S"}.get) == {"1": "S"}


def test_this_machine_has_a_zombie_when_there_is_one():
    check = Processes(ProcessesOptions())
    before = check.measure(0.0)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        wait_until_zombie(child.pid)
        values = check.measure(1.0)
        assert values[state("defunct")] >= 1
        assert values[CREATED] >= 1
        # Others start and end meanwhile: the machine's own listing gives the scale.
        listed = len([path for path in Path("/proc").iterdir() if path.name.isdecimal()])
        assert values[TOTAL] == pytest.approx(listed, abs=max(20, listed * 0.2))
        assert before[TOTAL] > 1
    finally:
        child.wait()


def test_this_machine_has_a_stopped_process_when_there_is_one():
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert Processes(ProcessesOptions()).measure(0.0)[state("stopped")] >= 1
    finally:
        child.kill()
        child.wait()


def wait_until_zombie(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    deadline = time.monotonic() + 10
    while parse_state(Path(f"/proc/{pid}/stat").read_bytes()) != "Z":
        assert time.monotonic() < deadline
