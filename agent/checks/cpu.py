"""How the CPUs spend their time, all of them together."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from agent.checks import CheckOptions, SingleCheck, check
from fleetpulse.machine.cpu import count, seconds_by_mode, shares
from fleetpulse.outcome import Values


@check("cpu")
class Cpu(SingleCheck):
    """Shares of time since the previous measurement."""

    def __init__(self, _options: CheckOptions) -> None:
        self._before: Mapping[str, float] | None = None

    def measure(self, now: float) -> Values:  # noqa: ARG002 - shares of CPU time need no clock
        """The number of CPUs and the shares; those are NaN the first time."""
        modes = seconds_by_mode(psutil.cpu_times()._asdict())
        before, self._before = self._before, modes
        return {**count(os.cpu_count()), **shares(before, modes)}
