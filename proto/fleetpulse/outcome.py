"""What a check says, between its measurement and the report. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from fleetpulse.model import Measurement, State

Values = Mapping[Measurement, float]
"""One number per series of one check instance; NaN where it could not be measured."""

_NO_VALUES: Values = MappingProxyType({})


class NoData(Exception):
    """The machine has nothing of the kind that the check looks at, which is no error."""


class Verdict(NamedTuple):
    """The reading of a check that judges itself, such as a plugin."""

    state: State
    message: str
    values: Values = _NO_VALUES


class Failure(NamedTuple):
    """Why a check, or one instance of it, could not be measured."""

    message: str


Reading = Values | Verdict
"""What measuring one check instance yields."""


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """What one round found out about one check.

    `readings` holds every instance that exists now, a check without instances under "". It is a
    Failure when not even the instances are known, and empty when the machine has nothing of the kind.
    """

    name: str
    readings: Mapping[str, Reading | Failure] | Failure
