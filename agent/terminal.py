"""Text that may be shown on a terminal: mount points and the collector's words are others' to choose."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Text that cannot move a cursor, change colours, reorder or break a line: ESC becomes \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
