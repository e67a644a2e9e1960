"""Points in time as text. Pure but for the time zone of this machine."""

from __future__ import annotations

import time


def local(ms: int) -> str:
    """Local time: "2025-01-02 03:04:05"."""
    at = time.localtime(ms // 1000)
    return (
        f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
    )


def utc(ms: int) -> str | None:
    """RFC 3339 in UTC: "2025-01-02T03:04:05.678Z"; None for years that it cannot write, and for 0."""
    at = time.gmtime(ms // 1000)
    if not ms or not 1 <= at.tm_year <= 9999:
        return None
    date = f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d}"
    return f"{date}T{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}.{ms % 1000:03d}Z"
