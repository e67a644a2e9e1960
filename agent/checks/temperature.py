"""Temperatures of every sensor that the kernel knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import psutil

from agent.checks import CheckOptions, TableCheck, check
from fleetpulse.model import Measurement
from fleetpulse.outcome import NoData, Values

_TEMPERATURE = Measurement("hw.temperature", "Cel")


@check("temperature")
class Temperature(TableCheck):
    """An instance per sensor, named after its chip and label ("coretemp Core 0")."""

    def __init__(self, _options: CheckOptions) -> None:
        pass

    def measure_all(self, now: float) -> Mapping[str, Values]:  # noqa: ARG002 - nothing here is a rate
        """Every sensor's temperature; raises NoData where there are none."""
        chips = psutil.sensors_temperatures()
        return parse({chip: [(s.label, s.current) for s in sensors] for chip, sensors in chips.items()})


def parse(chips: Mapping[str, Iterable[tuple[str, float]]]) -> dict[str, Values]:
    """From (label, degrees Celsius) of each chip's sensors. Raises NoData where there are none.

    Sensors of the same name, as those of several disks, are told apart by a number in the kernel's
    order.
    """
    readings: dict[str, Values] = {}
    seen: Counter[str] = Counter()
    for chip, sensors in sorted(chips.items()):
        for label, celsius in sensors:
            name = f"{chip} {label}".strip()
            seen[name] += 1
            instance = name if seen[name] == 1 else f"{name} #{seen[name]}"
            readings[instance] = {_TEMPERATURE: float(celsius)}
    if not readings:
        raise NoData
    return readings
