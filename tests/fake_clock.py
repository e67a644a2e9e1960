"""A system clock that a test can set, for real processes: Debian's libfaketime.

It changes what processes take for the time of day. The clocks that nobody can set go on as on a real
machine, whatever becomes of the time of day.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBRARIES = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
LIBRARY = next(_LIBRARIES, None)


def missing_parts() -> str:
    """What keeps clocks from being set here; empty when nothing does."""
    return "" if LIBRARY else "libfaketime.so.1 not found; run: apt-get install faketime"


class FakeClock:
    """The clock of every process that is started inside `worn`; a real one until it is set."""

    def __init__(self, folder: Path):
        self._file = folder / "clock"
        self.set(0)

    def set(self, seconds: int) -> None:
        """Let the clock jump to so many seconds ahead of the real time, or behind it."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self._file)

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Processes that are started meanwhile have this clock, for as long as they live."""
        settings = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # what older versions call it
        }
        before = dict(os.environ)
        os.environ.update(settings)
        try:
            yield
        finally:
            for name in settings:
                if name in before:
                    os.environ[name] = before[name]
                else:
                    del os.environ[name]
