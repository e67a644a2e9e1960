"""The machines that are polled, as seen from outside: which were, and when."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

_PATIENCE = 120.0  # seconds for a poll of every host


class Lab:
    """The simulated hosts, in a process of their own."""

    def __init__(self, folder: Path, hosts: int, hang: float = 0.0):
        folder.mkdir()
        self.folder = folder
        command = [sys.executable, "-m", "bench.crawl_hosts", "--folder", str(folder)]
        command += ["--hosts", str(hosts), "--hang", str(hang)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.polls: dict[str, list[float]] = {}
        """When each host that answers did so, by the monotonic clock."""
        self.hanging = frozenset(self._line()["hanging"])
        self.connections = 0
        self.most_sessions = 0

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def look(self) -> None:
        """See what the hosts have seen."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        for name, seen in self._line().items():
            if name not in self.hanging:
                self.polls.setdefault(name, []).extend(seen["polls"])
            self.connections += seen["connections"]
            self.most_sessions = max(self.most_sessions, seen["most_sessions"])

    def begin_anew(self) -> None:
        """Forget what was seen so far."""
        self.look()
        self.polls = {name: [] for name in self.polls}
        self.connections = self.most_sessions = 0

    def wait_for_everyone(self, after: float = 0.0) -> float:
        """Wait until every host that answers has been polled after that time; when the last one was first polled."""
        began = time.monotonic()
        self.look()
        while missing := [name for name, polls in self.polls.items() if not polls or polls[-1] <= after]:
            if time.monotonic() - began > _PATIENCE:
                raise SystemExit(f"{len(missing)} hosts were not polled, such as {missing[0]}")
            time.sleep(0.1)
            self.look()
        return max(polls[0] for polls in self.polls.values())

    def answered(self, end: float) -> dict[str, int]:
        """How many polls of every host ended until then."""
        return {name: sum(poll <= end for poll in polls) for name, polls in self.polls.items()}

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds from one poll of a host to its next, for those next ones that ended in that time."""
        return [
            after - before
            for polls in self.polls.values()
            for before, after in pairwise(polls)
            if begin < after <= end
        ]

    def waits(self, end: float) -> list[float]:
        """How long every host has been waiting at that time."""
        return [end - max(poll for poll in polls if poll <= end) for polls in self.polls.values()]

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the simulated hosts have ended")
        said: dict[str, Any] = json.loads(line)
        return said
