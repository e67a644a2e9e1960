"""One line on standard error that is redrawn in place while somebody at a terminal waits."""

from __future__ import annotations

import os
import sys

from collector.core.render import escape

_ERASE = "\r\x1b[K"


class ProgressLine:
    """Says nothing where nobody looks, or a line cannot be redrawn."""

    def __init__(self) -> None:
        self._is_seen = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_drawn = False

    def show(self, text: str) -> None:
        """Draw the line, in place of what it said."""
        if self._is_seen:
            self._is_drawn = True
            sys.stderr.write(f"{_ERASE}{escape(text)}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave nothing behind, so that other text can follow."""
        if self._is_drawn:
            self._is_drawn = False
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
