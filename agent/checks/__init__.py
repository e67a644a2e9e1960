"""The registry of checks: one file a check, which registers itself by being in this package.

A check takes one of three shapes:

* a plain function that returns its values, for what is read in one go;
* a `SingleCheck` or `TableCheck`, an object that remembers counters or has options and reads
  itself, or all of its instances, in one go;
* an `InstanceCheck`, which lists its instances and measures each on its own, so that one that hangs
  takes down only itself.

Raising `fleetpulse.outcome.NoData` leaves a check (or one instance) out; any other exception makes it UNKNOWN.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from fleetpulse.config import Duration
from fleetpulse.outcome import Reading

MIN_TIMEOUT = 0.05
"""Seconds; with less, a machine that is merely busy would fail its checks."""


class CheckOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every check can be told in its own table; a check with more options extends this."""

    timeout: Duration | None = None
    """Overrides the timeout of all checks."""

    def __post_init__(self) -> None:
        if self.timeout is not None:
            _require_timeout(self.timeout)


def _require_timeout(timeout: Duration) -> None:
    if timeout < MIN_TIMEOUT:
        raise ValueError(f"timeout: {timeout:g} s is less than {MIN_TIMEOUT:g} s")


class SingleCheck(abc.ABC):
    """A check without instances."""

    @abc.abstractmethod
    def measure(self, now: float) -> Reading:
        """`now` is in monotonic seconds."""


class TableCheck(abc.ABC):
    """A check whose instances are all read in one go."""

    @abc.abstractmethod
    def measure_all(self, now: float) -> Mapping[str, Reading]:
        """Every instance that exists now. `now` is in monotonic seconds."""


class InstanceCheck(abc.ABC):
    """A check whose instances are measured one by one, at times by several threads at once."""

    @abc.abstractmethod
    def discover(self) -> Iterable[str]:
        """Every instance that exists now, those least likely to hang first."""

    @abc.abstractmethod
    def measure(self, instance: str, now: float) -> Reading:
        """`now` is in monotonic seconds."""


Check = SingleCheck | TableCheck | InstanceCheck


class ConfiguredCheck(NamedTuple):
    """A check ready to run. `timeout` in seconds."""

    name: str
    check: Check
    timeout: float


class _Registration(NamedTuple):
    make: Callable[[Any], Check]
    options: type[CheckOptions]


class _FunctionCheck(SingleCheck):
    """A plain function in the shape of a check."""

    def __init__(self, function: Callable[[], Reading]) -> None:
        self._function = function

    def measure(self, now: float) -> Reading:  # noqa: ARG002 - a function needs no time
        return self._function()


_registry: dict[str, _Registration] = {}

_Target = TypeVar("_Target", bound=Callable[..., object])


def check(name: str, options: type[CheckOptions] = CheckOptions) -> Callable[[_Target], _Target]:
    """Register a function, or a class that is called with its options, as the check `name`.

    Raises ValueError if the name is taken, by a check or by a setting of all checks.
    """

    def register(target: _Target) -> _Target:
        if name in _registry or name in CommonOptions.__struct_fields__:
            raise ValueError(f"the name of the check {name!r} is taken")
        make = target if isinstance(target, type) else lambda _options: _FunctionCheck(target)  # type: ignore[arg-type]
        _registry[name] = _Registration(make, options)
        return target

    return register


class CommonOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of all checks together."""

    timeout: Duration = Duration(5)
    """How long one check, or one instance of it, may take."""
    disabled: tuple[str, ...] = ()
    """Names of checks that are not run."""

    def __post_init__(self) -> None:
        _require_timeout(self.timeout)
        unknown = sorted(set(self.disabled) - set(_registry))
        if unknown:
            raise ValueError(
                f"disabled: no check is named {unknown[0]!r}; there are {', '.join(check_names())}"
            )


for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)


if TYPE_CHECKING:

    class ChecksConfig(CommonOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
        """The table `checks` of the configuration, with a table for every registered check inside."""

else:
    # The registry knows the fields, so that a new check needs no line here.
    ChecksConfig = msgspec.defstruct(
        "ChecksConfig",
        [(name, entry.options, entry.options()) for name, entry in sorted(_registry.items())],
        bases=(CommonOptions,),
        module=__name__,
        frozen=True,
        forbid_unknown_fields=True,
        kw_only=True,
    )


def check_names() -> list[str]:
    """Every check that exists, sorted."""
    return sorted(_registry)


def create_checks(config: ChecksConfig) -> list[ConfiguredCheck]:
    """The checks that `config` leaves on, sorted by name, each with its options and a clean memory."""
    created = []
    for name in check_names():
        if name not in config.disabled:
            options: CheckOptions = getattr(config, name)
            timeout = config.timeout if options.timeout is None else options.timeout
            created.append(ConfiguredCheck(name, _registry[name].make(options), timeout))
    return created
