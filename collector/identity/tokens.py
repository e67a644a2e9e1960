"""Enrolment tokens as text: what an admin hands to a machine. Only the hash is ever stored."""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "fpt_"  # tells people, and scanners for leaked secrets, what it is
_RANDOM_BYTES = 32
_SHAPE = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}", re.ASCII)

SHAPE = f"{PREFIX} and 43 letters, digits, - or _"
"""What a token looks like, in words."""


def make_token() -> str:
    """A new token: 256 bits from the system's source of randomness."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def is_token(text: str) -> bool:
    """Whether the text could be a token."""
    return _SHAPE.fullmatch(text) is not None


def hash_token(text: str) -> bytes:
    """SHA-256, under which a token is stored: what is random needs no salt and no slow hash."""
    return hashlib.sha256(text.encode()).digest()
