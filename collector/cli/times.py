"""Points in time as text. Pure but for the time zone of this machine."""

from __future__ import annotations

import time
from functools import lru_cache


def local(ms: int) -> str:
    """Local time: "2025-01-02 03:04:05"."""
    at = time.localtime(ms // 1000)
    return (
        f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
    )


def utc(ms: int) -> str | None:
    """RFC 3339 in UTC: "2025-01-02T03:04:05.678Z"; None for years that it cannot write, and for 0."""
    second = _utc_second(ms // 1000) if ms else ""
    return f"{second}.{ms % 1000:03d}Z" if second else None


@lru_cache(maxsize=4096)  # a fleet has reported within the last few
def _utc_second(seconds: int) -> str:
    at = time.gmtime(seconds)
    if not 1 <= at.tm_year <= 9999:
        return ""
    date = f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d}"
    return f"{date}T{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
