"""Values as people read them. Pure; times and durations in milliseconds.

Everything that a host says is data: `escape` stands between it and a terminal.
"""

from __future__ import annotations

import math
from functools import lru_cache

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SPANS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"))


def escape(text: str) -> str:
    r"""Text that cannot move a cursor, change colours, reorder or break a line: ESC becomes \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@lru_cache(maxsize=1024)  # of a fleet's intervals and times-to-live, most are the same
def duration(ms: float) -> str:
    """A duration in its two largest units: "45s", "3m 12s", "2d 4h"; below ten seconds "3.2s"."""
    if ms < 0:
        return f"-{duration(-ms)}"
    if ms < 10_000:
        return f"{ms / 1000:.1f}s"
    rest = int(ms)
    for index, (span, letter) in enumerate(_SPANS):
        if rest >= span:
            text = f"{rest // span}{letter}"
            if index + 1 < len(_SPANS):
                smaller, smaller_letter = _SPANS[index + 1]
                text += f" {rest % span // smaller}{smaller_letter}"
            return text
    return "0s"


def quantity(value: float, unit: str) -> str:
    """A measurement in units that people use. `unit` is UCUM; a missing value (NaN) is "-"."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if unit == "1":
        return f"{_number(value * 100)} %"
    if unit == "By":
        return _binary(value)
    if unit == "By/s":
        return f"{_binary(value)}/s"
    if unit == "s":
        return duration(value * 1000) if abs(value) < 1e11 else f"{value:.3g} s"
    if unit == "Cel":
        return f"{_number(value)} °C"
    bare = unit.replace("{", "").replace("}", "")
    return f"{_number(value)}{bare}" if bare.startswith("/") else f"{_number(value)} {bare}".rstrip()


def count(number: int, singular: str, plural: str = "") -> str:
    """A number of things: "1 host", "2 hosts"."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def listed(names: list[str], most: int = 10) -> str:
    """Names for one line: the first few, and how many more there are."""
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def _binary(value: float) -> str:
    index = 0
    while abs(value) >= 1024 and index < len(_BINARY) - 1:
        value /= 1024
        index += 1
    return f"{_number(value)} {_BINARY[index]}"


def _number(value: float) -> str:
    """Three digits that matter, and no more; whole numbers whole."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"
