"""One round of measurement: run every check, remember the layout, line the values up with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.checks import ChecksConfig, create_checks
from agent.runner import Runner
from fleetpulse.content import ReportBuilder
from fleetpulse.model import CheckResult, Layout


@dataclass(frozen=True, slots=True)
class Measured:
    """What a report says, before it has a number. `values` follows `layout.series`."""

    measured_at: int
    """Milliseconds since the Unix epoch."""
    layout: Layout
    values: tuple[float, ...]
    results: tuple[CheckResult, ...]
    durations: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each check took in this round."""


class Measurer:
    """Measures this machine. Its checks keep their previous counters between two calls.

    `last_layout` is that of the last report before the start, if it is known.
    """

    def __init__(self, config: ChecksConfig, last_layout: Layout | None = None) -> None:
        self._runner = Runner(create_checks(config))
        self._builder = ReportBuilder(last_layout)

    def stop(self) -> None:
        """Make a running measure() return at once, and all later ones. Safe in a signal handler.

        What they return is incomplete then, and not to be reported.
        """
        self._runner.stop()

    def measure(self, monotonic_now: float, measured_at_ms: int) -> Measured:
        """Run every check once and wait for all, at most as long as their timeouts allow.

        `monotonic_now` is in seconds and makes counters into rates. Not for several threads at once.
        """
        done = self._runner.run(monotonic_now)
        content = self._builder.build(done.outcomes)
        return Measured(measured_at_ms, content.layout, content.values, content.results, done.durations)
