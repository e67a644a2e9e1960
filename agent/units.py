"""Measurements as people read them."""

from __future__ import annotations

import math

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def readable(name: str, unit: str, value: float) -> str:
    """`value` in the UCUM `unit`, as text; "-" for NaN, a value that is missing."""
    if math.isnan(value):
        return "-"
    per_second = "/s" if unit.endswith("/s") and unit != "s/s" else ""
    base = unit.removesuffix("/s") if per_second else unit
    if base == "By":
        return f"{_bytes(value)}{per_second}"
    if unit in ("1", "s/s"):
        # A load of one second a second, like a utilization of one, is all there is.
        return f"{value * 100:.1f} %"
    if unit == "s":
        return f"{value:.0f} s since 1970" if name.endswith("boot_time") else _duration(value)
    if unit == "Cel":
        return f"{value:.1f} °C"
    number = f"{value:.0f}" if value == int(value) else f"{value:.2f}"
    noun = base.strip("{}")
    return f"{number} {noun}{per_second}" if noun else f"{number}{per_second}"


def _bytes(value: float) -> str:
    for unit in _BINARY:
        if abs(value) < 1024 or unit == _BINARY[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
