"""What agents may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes in bytes, times in seconds; `..._per_...` are of one host."""

    batch_reports: int
    message_size: int
    hello_timeout: float
    connections: int = 10_000
    reports_per_second: float = 100.0
    hellos_per_minute: float = 12.0
