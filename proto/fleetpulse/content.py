"""What a round found out becomes what a report says. Pure: no I/O and no clock."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, State
from fleetpulse.outcome import CheckOutcome, Failure, Reading, Values, Verdict

MAX_MESSAGE = 1_000
"""Characters of a check's message that are kept."""
MAX_INSTANCE = 255
"""Characters of an instance's name: the collector refuses a layout with a longer one."""
MAX_INSTANCES = 400
"""Instances of one check: one that has gone wild must not make the whole layout too large."""


class ReportContent(NamedTuple):
    """The parts of a report that are measured. `values` follows `layout.series`."""

    layout: Layout
    values: tuple[float, ...]
    results: tuple[CheckResult, ...]


class _Entry(NamedTuple):
    measurements: tuple[Measurement, ...]
    values: tuple[float, ...]
    verdict: tuple[State, str] | None = None


class ReportBuilder:
    """Remembers the layout, so that what fails is not taken for gone.

    Told the `last_layout` from before a restart, it does so from the first round on.
    """

    def __init__(self, last_layout: Layout | None = None) -> None:
        self._layout = last_layout or Layout(())
        self._known: dict[str, dict[str, tuple[Measurement, ...]]] = {}
        for check in self._layout.checks:
            self._known.setdefault(check.key.name, {})[check.key.instance] = check.measurements

    def build(self, outcomes: Iterable[CheckOutcome]) -> ReportContent:
        """The content of the next report.

        A check, or an instance, that failed keeps its series with NaN and is UNKNOWN with its
        message. Only an instance that its check no longer finds is dropped. The order depends on
        names alone, so equal machines have equal layouts; the Layout object stays while its
        content does.
        """
        entries: dict[CheckKey, _Entry] = {}
        known: dict[str, dict[str, tuple[Measurement, ...]]] = {}
        for outcome in outcomes:
            found = self._entries(outcome)
            known[outcome.name] = {instance: entry.measurements for instance, entry in found.items()}
            entries |= {CheckKey(outcome.name, instance): entry for instance, entry in found.items()}
        self._known = known
        if not self._fits(entries):
            self._layout = Layout(
                tuple(CheckLayout(key, entries[key].measurements) for key in sorted(entries))
            )
        ordered = [entries[check.key] for check in self._layout.checks]
        values = tuple([value for entry in ordered for value in entry.values])
        results = tuple(
            [
                CheckResult(index, *entry.verdict)
                for index, entry in enumerate(ordered)
                if entry.verdict is not None
            ]
        )
        return ReportContent(self._layout, values, results)

    def _fits(self, entries: Mapping[CheckKey, _Entry]) -> bool:
        """Whether the layout is still that of `entries`; keys are different from each other on both sides."""
        checks = self._layout.checks
        return len(checks) == len(entries) and all(
            (entry := entries.get(key)) is not None and entry.measurements == measured
            for key, measured in checks
        )

    def _entries(self, outcome: CheckOutcome) -> dict[str, _Entry]:
        known = self._known.get(outcome.name, {})
        readings = outcome.readings
        if isinstance(readings, Failure):
            return {instance: _failed(readings, known.get(instance, ())) for instance in known or ("",)}
        if len(readings) > MAX_INSTANCES:
            return _entries_of_many(readings, known)
        return {
            (name := instance_name(instance)): _entry(reading, known.get(name, ()))
            for instance, reading in readings.items()
        }


def instance_name(text: str) -> str:
    """`text` if it can be sent as it is; else something that can, and differs where `text` does.

    Bytes that are no UTF-8 (mount points may have some) become escapes. A long name keeps its
    beginning and gets a digest.
    """
    name = _sendable(text)
    if len(name) <= MAX_INSTANCE:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{name[: MAX_INSTANCE - len(digest) - 1]}~{digest}"


def _entries_of_many(
    readings: Mapping[str, Reading | Failure], known: Mapping[str, tuple[Measurement, ...]]
) -> dict[str, _Entry]:
    names = sorted(readings)[:MAX_INSTANCES]
    entries = {
        (name := instance_name(instance)): _entry(readings[instance], known.get(name, ()))
        for instance in names
    }
    message = f"{len(readings)} instances, of which only the first {len(names)} are reported"
    entries[""] = _failed(Failure(message), ())
    return entries


def _entry(reading: Reading | Failure, known: tuple[Measurement, ...]) -> _Entry:
    if isinstance(reading, Failure):
        return _failed(reading, known)
    if isinstance(reading, Verdict):
        return _measured(reading.values, (reading.state, _message(reading.message)), known)
    return _measured(reading, None, known)


def _measured(values: Values, verdict: tuple[State, str] | None, known: tuple[Measurement, ...]) -> _Entry:
    if len(values) == len(known):  # most often the same ones: to sort them takes longer than the rest
        try:
            return _Entry(known, tuple([_finite(values[m]) for m in known]), verdict)
        except KeyError:
            pass
    measurements = tuple(sorted(values))
    return _Entry(measurements, tuple([_finite(values[m]) for m in measurements]), verdict)


def _failed(failure: Failure, known: tuple[Measurement, ...]) -> _Entry:
    return _Entry(known, (math.nan,) * len(known), (State.UNKNOWN, _message(failure.message)))


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _message(text: str) -> str:
    return _sendable(text)[:MAX_MESSAGE]


def _sendable(text: str) -> str:
    # Only lone surrogates, Python's form of bytes that are no UTF-8, cannot be encoded.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
