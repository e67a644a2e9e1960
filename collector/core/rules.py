"""Thresholds: which values are a WARNING or CRITICAL, and when that counts.

Rules are resolved once per layout into a `Plan` of (series index, thresholds), so that judging a
report compares floats and looks nothing up.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from collector.core.status import CheckStatus
from fleetpulse.model import CheckKey, CheckResult, Layout, Measurement, State


class Direction(enum.StrEnum):
    """Which side of a threshold is bad."""

    ABOVE = "above"
    BELOW = "below"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds for one measurement of the checks that match, with the keys of a rules file.

    `check` and `instance` are shell patterns. A level is entered when the value reaches it
    (`warning`, `critical`), and left only when the value has passed its clear value. None: the
    level does not exist; a rule without levels exempts what it matches from later rules.
    A new state counts once it was seen `occurrences` times in a row.
    """

    check: str
    measurement: str
    instance: str = "*"
    direction: Direction = Direction.ABOVE
    warning: float | None = None
    warning_clear: float | None = None
    critical: float | None = None
    critical_clear: float | None = None
    occurrences: int = 1

    def matches(self, key: CheckKey, measurement: Measurement) -> bool:
        """Whether this rule judges that measurement of that check."""
        return (
            self.measurement == measurement.name
            and fnmatch.fnmatchcase(key.name, self.check)
            and fnmatch.fnmatchcase(key.instance, self.instance)
        )


class _Level(NamedTuple):
    state: State
    enter: float  # both multiplied by the sign, so that "bad" is always "at or above"
    leave: float


class _Watch(NamedTuple):
    """One series under one rule. `sign` turns "below" into "above"."""

    series: int
    sign: float
    levels: tuple[_Level, ...]  # worst first
    rule: Rule


class Verdict(NamedTuple):
    """What a report says of one check, before it is confirmed.

    `occurrences` is how often it has to be seen in a row to count; 0 for OK, which the state that it
    would end decides.
    """

    state: State
    message: str
    occurrences: int
    is_own: bool


_CHECK_SIZE = 60  # bytes of a check's entry in a plan
_WATCH_SIZE = 600  # bytes of a watched series, with two levels


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules that apply to one layout, resolved.

    `alarms` is (series index, sign, lowest entering threshold, check index) of every watched series:
    a check none of whose values reaches its threshold cannot leave OK.
    """

    layout: Layout
    alarms: tuple[tuple[int, float, float, int], ...]
    watches: tuple[tuple[_Watch, ...], ...]  # by index of the check in the layout

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes up, its layout included."""
        return self.layout.size + len(self.watches) * _CHECK_SIZE + len(self.alarms) * _WATCH_SIZE

    def is_quiet(self, values: Sequence[float]) -> bool:
        """True when no value reaches a threshold. A missing value (NaN) reaches none."""
        for series, sign, limit, _ in self.alarms:  # noqa: SIM110 - any() is three times slower here
            if values[series] * sign >= limit:
                return False
        return True

    def breached(self, values: Sequence[float]) -> set[int]:
        """The checks, by their index in the layout, of which a value reaches a threshold."""
        return {check for series, sign, limit, check in self.alarms if values[series] * sign >= limit}

    def judge(
        self, check: int, values: Sequence[float], own: CheckResult | None, previous: CheckStatus
    ) -> Verdict:
        """The state of the layout's check number `check`: the worst of its own word and its rules.

        `is_own` of the verdict says that the check's own word was the worst. An own state counts at once.

        A value that is missing although the check did not fail cannot clear what it once raised.
        """
        state, message = (own.state, own.message) if own else (State.OK, "")
        is_own, occurrences = own is not None, 0 if own is None else 1
        for watch in self.watches[check]:
            value = values[watch.series]
            if value != value:
                if own is None and previous.state.severity > state.severity:
                    state, message = previous.state, previous.message
                continue
            level = _level_of(value * watch.sign, watch.levels, previous.state)
            if level is not None and level.state.severity > state.severity:
                state, message, is_own = level.state, self._explain(watch, level, value), False
                occurrences = watch.rule.occurrences
        return Verdict(state, message, occurrences, is_own)

    def _explain(self, watch: _Watch, level: _Level, value: float) -> str:
        measurement = self.layout.series[watch.series][1]
        sign = ">=" if watch.sign > 0 else "<="
        limit = (level.enter if value * watch.sign >= level.enter else level.leave) * watch.sign
        unit = "" if measurement.unit == "1" else f" {measurement.unit}"
        return f"{measurement.name} {_number(value)} {sign} {_number(limit)}{unit}"


class RuleSet:
    """An ordered list of rules; the first that matches a series judges it."""

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)

    def plan(self, layout: Layout) -> Plan:
        """Resolve the rules for a layout."""
        watches: list[tuple[_Watch, ...]] = []
        alarms: list[tuple[int, float, float, int]] = []
        series = 0
        for index, check in enumerate(layout.checks):
            of_check: list[_Watch] = []
            for measurement in check.measurements:
                watch = self._watch(series, check.key, measurement)
                if watch is not None:
                    of_check.append(watch)
                    lowest = min(level.enter for level in watch.levels)
                    alarms.append((series, watch.sign, lowest, index))
                series += 1
            watches.append(tuple(of_check))
        return Plan(layout, tuple(alarms), tuple(watches))

    def _watch(self, series: int, key: CheckKey, measurement: Measurement) -> _Watch | None:
        rule = next((rule for rule in self.rules if rule.matches(key, measurement)), None)
        if rule is None:
            return None
        sign = 1.0 if rule.direction is Direction.ABOVE else -1.0
        levels = tuple(
            _Level(state, enter * sign, (enter if leave is None else leave) * sign)
            for state, enter, leave in (
                (State.CRITICAL, rule.critical, rule.critical_clear),
                (State.WARNING, rule.warning, rule.warning_clear),
            )
            if enter is not None
        )
        return _Watch(series, sign, levels, rule) if levels else None


def _level_of(value: float, levels: tuple[_Level, ...], previous: State) -> _Level | None:
    """The worst level that `value` is in, given that leaving one takes passing its clear value."""
    for level in levels:
        held = previous in (State.WARNING, State.CRITICAL) and previous >= level.state
        if value >= (level.leave if held else level.enter):
            return level
    return None


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.3e}"
