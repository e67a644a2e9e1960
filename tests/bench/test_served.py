"""What drives a benchmark's collector: it ends the benchmark rather than hang or hide a failure."""

from __future__ import annotations

import argparse
import socket
import subprocess
import tempfile

import pytest

from bench import served


def run(script: str) -> subprocess.Popen[bytes]:
    """A shell that has begun with it."""
    process = subprocess.Popen(["sh", "-c", f"{script}; echo; read _"], stdin=-1, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def stop(script: str) -> None:
    with tempfile.TemporaryFile("w+") as log, run(script) as process:
        log.write("why")
        served._stop(process, log)


def test_a_collector_that_ends_in_order_is_no_failure():
    stop("trap 'exit 0' TERM")


def test_one_that_ends_with_an_error_ends_the_benchmark_with_its_log():
    with pytest.raises(SystemExit, match=r"ended with 3:\nwhy"):
        stop("trap 'exit 3' TERM")


def test_one_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(served, "_STOP_PATIENCE", 0.1)
    with pytest.raises(SystemExit, match="ended with -9"):
        stop("trap '' TERM")


def test_a_load_that_fails_ends_the_benchmark():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = argparse.Namespace(streams=1, seconds=0.1, warm_up=0.0)
        with pytest.raises(SystemExit, match="ended with 1"):
            served.run_load(address, {}, arguments)


def test_a_load_that_does_not_end_is_killed():
    process = subprocess.Popen(["sleep", "60"], text=True)
    with process, served._killed_after(0.05, process):
        process.wait(30)
    assert process.returncode == -9
