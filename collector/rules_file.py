"""Rules as an admin writes them: a TOML file of [[rule]] tables, before the built-in ones."""

from __future__ import annotations

import hashlib
import math
from importlib import resources
from pathlib import Path

import msgspec

from collector.core.rules import Direction, Rule, RuleSet
from fleetpulse import config
from fleetpulse.config import ConfigError


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    builtin: bool = True
    rule: tuple[Rule, ...] = ()


def load_rules(path: Path | None) -> RuleSet:
    """The site's rules in `path` (None: it has none), then the built-in ones.

    Raises ConfigError that names the file and the rule.
    """
    own = _read(path) if path is not None else _File()
    rules = [*_rules(own, path)]
    if own.builtin:
        with resources.as_file(resources.files("collector") / "default_rules.toml") as default:
            rules += _rules(_read(default), default)
    return RuleSet(rules)


def fingerprint(rules: RuleSet) -> str:
    """Text that differs when the rules do."""
    return hashlib.blake2b(repr(rules.rules).encode(), digest_size=16).hexdigest()


def _read(path: Path) -> _File:
    return config.load(_File, path, {}, "RULES")


def _rules(file: _File, path: Path | None) -> list[Rule]:
    return [_checked(rule, f"{path}: rule[{number}]") for number, rule in enumerate(file.rule)]


def _checked(rule: Rule, where: str) -> Rule:
    sign = 1 if rule.direction is Direction.ABOVE else -1
    levels = (
        ("warning", rule.warning, rule.warning_clear),
        ("critical", rule.critical, rule.critical_clear),
    )
    for name, enter, leave in levels:
        if enter is None and leave is not None:
            raise ConfigError(f"{where}.{name}_clear: there is no {name} to clear")
        for value in (enter, leave):
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{where}.{name}: {value} is no threshold")
        if enter is not None and leave is not None and leave * sign > enter * sign:
            side = "above" if sign > 0 else "below"
            raise ConfigError(
                f"{where}.{name}_clear: {leave:g} lies {side} {name} = {enter:g}, so the state could never last"
            )
    if rule.warning is not None and rule.critical is not None and rule.warning * sign > rule.critical * sign:
        raise ConfigError(f"{where}.warning: {rule.warning:g} is worse than critical = {rule.critical:g}")
    if rule.occurrences < 1:
        raise ConfigError(f"{where}.occurrences: {rule.occurrences} is not at least 1")
    return rule
