"""What the running agent leaves for `fleet-agent enroll`: that the collector refuses its certificate.

The certificate looks good on this machine and is worth nothing, because its host was removed or it was
revoked. Only the collector knows, and says it to the agent alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.certificate import certificates
from agent.state_dir import put_in_place, write_aside

REFUSED_FILE = "refused"
ENROL_AGAIN = (
    "get a token for it (collector-cli token create --host NAME) and enrol again: fleet-agent enroll --force"
)
"""What helps a host whose certificate is worth nothing any more."""
_MAX_REASON = 1_000  # characters


def note_refusal(folder: Path, chain: bytes, reason: str) -> None:
    """Leave it that this certificate was refused, unless that is noted already. Raises OSError."""
    path = folder / REFUSED_FILE
    line = " ".join(reason[:_MAX_REASON].split())
    content = f"{_fingerprint(chain)}\n{line}\n"
    if _read(path) != content:
        put_in_place(write_aside(path, content.encode()), path)


def noted_refusal(folder: Path, chain: bytes) -> str:
    """Why the collector refused this very certificate; empty if it did not."""
    fingerprint, _, reason = _read(folder / REFUSED_FILE).partition("\n")
    return (reason.strip() or "no reason given") if fingerprint == _fingerprint(chain) else ""


def forget_refusal(folder: Path) -> None:
    """There is none, or none any more. Raises OSError."""
    (folder / REFUSED_FILE).unlink(missing_ok=True)


def _fingerprint(chain: bytes) -> str:
    return hashlib.sha256(certificates(chain)[0]).hexdigest()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(8 * _MAX_REASON)
    except OSError:
        return ""
