"""TOML configuration with environment overrides, read into typed, frozen structures.

A configuration is a `msgspec.Struct` whose nested Structs are the TOML tables. Every leaf can be
overridden by an environment variable: the prefix and the key path in capitals, joined with "_"
(`[silence] mass_share` under the prefix FLEETPULSE is FLEETPULSE_SILENCE_MASS_SHARE).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import msgspec

_Config = TypeVar("_Config", bound=msgspec.Struct)


class ConfigError(Exception):
    """A configuration cannot be used; the text names the place and what is wrong there."""


class Duration(float):
    """Seconds. Written as a number of seconds or as text such as "500ms", "15s", "5m", "24h", "90d"."""

    _UNITS: Mapping[str, float] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    _PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhdw]?)\s*")

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Raises ValueError for anything but a non-negative number with or without a unit."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return cls(value)
        if isinstance(value, str) and (match := cls._PATTERN.fullmatch(value)):
            return cls(float(match[1]) * cls._UNITS[match[2] or "s"])
        raise ValueError(f'expected a duration such as "500ms", "15s", "5m" or "24h", got {value!r}')

    @property
    def milliseconds(self) -> int:
        """The duration in whole milliseconds."""
        return round(self * 1000)


class Size(int):
    """Bytes. Written as a number of bytes or as text such as "512KiB", "64MiB", "1GiB"."""

    _UNITS: Mapping[str, int] = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    _PATTERN = re.compile(r"\s*(\d+)\s*(B|KiB|MiB|GiB|)\s*")

    @classmethod
    def parse(cls, value: object) -> Size:
        """Raises ValueError for anything but a whole number with or without a unit."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        if isinstance(value, str) and (match := cls._PATTERN.fullmatch(value)):
            return cls(int(match[1]) * cls._UNITS[match[2] or "B"])
        raise ValueError(f'expected a size such as "512KiB", "64MiB" or "1GiB", got {value!r}')


def load(
    kind: type[_Config],
    path: Path | None,
    environ: Mapping[str, str],
    prefix: str,
    *,
    other_names: frozenset[str] = frozenset(),
    other_prefixes: tuple[str, ...] = (),
) -> _Config:
    """The configuration in `path` (none: the defaults), overridden from `environ`.

    `other_names` and `other_prefixes` are variables under `prefix` that something else reads; any
    other unknown variable is an error, because a misspelt override must not be ignored in silence.
    Raises ConfigError.
    """
    text = _read(path) if path is not None else ""
    data = _parse_toml(text, path)
    overrides = {f"{prefix}_{'_'.join(keys).upper()}": (keys, hint) for keys, hint in leaves(kind)}
    for name, value in sorted(environ.items()):
        if not name.startswith(prefix + "_") or name in other_names or name.startswith(other_prefixes):
            continue
        if name not in overrides:
            raise ConfigError(
                f"environment variable {name} names no configuration key{_suggest(name, overrides)}"
            )
        keys, hint = overrides[name]
        _place(data, keys, _from_text(name, value, hint))
    try:
        return msgspec.convert(data, kind, dec_hook=_decode_custom)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), kind, text, path)) from None


def existing(path: Path) -> Path | None:
    """The file, if it is there. Raises ConfigError where that cannot be seen: it may be, and say something."""
    try:
        return path if path.is_file() else None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def leaves(
    kind: type[msgspec.Struct], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Any]]]:
    """The key path and type of every value that a configuration of this kind holds."""
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from leaves(hint, (*above, name))
        else:
            yield (*above, name), hint


def refuse(key: str, what: str, path: Path | None, environ: Mapping[str, str], prefix: str) -> ConfigError:
    """The error for a value that is wrong only beside others: it names where `key` was set.

    `key` is a key path such as "spool.max_age"; the rest as given to `load`.
    """
    variable = f"{prefix}_{key.replace('.', '_').upper()}"
    if variable in environ:
        return ConfigError(f"environment variable {variable}: {what}")
    line = _line_of(_read(path), key) if path is not None else None
    place = f"{path}, line {line}" if line else str(path or "configuration")
    return ConfigError(f"{place}: {key}: {what}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def _parse_toml(text: str, path: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None


def _place(data: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    *tables, last = keys
    for table in tables:
        inner = data.setdefault(table, {})
        if not isinstance(inner, dict):
            return  # the conversion names this error better than we could
        data = inner
    data[last] = value


def _from_text(name: str, value: str, hint: type[Any]) -> object:
    if get_origin(hint) in (list, tuple):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.to_builtins(
            msgspec.convert(value, hint, strict=False, dec_hook=_decode_custom), enc_hook=_encode_custom
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"environment variable {name}: {_lower_first(str(error))}") from None


def _decode_custom(kind: type[Any], value: object) -> object:
    if issubclass(kind, (Duration, Size)):
        return kind.parse(value)
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected {kind.__name__}, got {value!r}")


def _encode_custom(value: object) -> object:
    if isinstance(value, Duration):
        return float(value)
    return int(value) if isinstance(value, Size) else str(value)


def _explain(message: str, kind: type[msgspec.Struct], text: str, path: Path | None) -> str:
    """A msgspec error with its place in the file and, for an unknown key, the likely one."""
    what, _, where = message.partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown:
        table = where
        where = f"{table}.{unknown[1]}" if table else unknown[1]
        known = [".".join(keys) for keys, _ in leaves(kind)]
        what = f"no such key{_suggest(where, known)}"
    place = str(path) if path is not None else "configuration"
    line = _line_of(text, where)
    if line:
        place += f", line {line}"
    return f"{place}: {where}: {_lower_first(what)}" if where else f"{place}: {_lower_first(what)}"


def _line_of(text: str, where: str) -> int | None:
    """The line that sets the key path `where` ("silence.mass_share", "rule[2].check")."""
    keys = re.sub(r"\[\d+\]|\[\.\.\.\]", "", where).split(".")
    index = re.search(r"\[(\d+)\]", where)
    occurrence = int(index[1]) if index else 0
    table: list[str] = []
    seen: dict[str, int] = {}
    header = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if match := re.fullmatch(r"(\[+)\s*([^\[\]]+?)\s*\]+\s*(?:#.*)?", stripped):
            table = [part.strip().strip("\"'") for part in match[2].split(".")]
            count = seen[match[2]] = seen.get(match[2], -1) + 1
            if table == keys[: len(table)] and (match[1] == "[" or count == occurrence):
                header = number
            else:
                table = [*table, "another of the same name"]
        elif match := re.match(r"([\w.\"'-]+)\s*=", stripped):
            path = [*table, *(part.strip("\"'") for part in match[1].split("."))]
            if path == keys[: len(path)]:
                return number
    return header


def _suggest(name: str, known: Iterator[str] | list[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
