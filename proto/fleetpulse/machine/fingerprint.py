"""By what a machine is known again: a hash of its machine id, the same from its agent and over SSH. Pure."""

from __future__ import annotations

import hashlib
import hmac
import uuid

_APP_ID = uuid.UUID("0b4e7c52-6d0f-4d3c-9a6e-5f1f5a1d7c11")


def machine_fingerprint(machine_id: str) -> str:
    """A hash of /etc/machine-id for this application alone; empty if that holds no id.

    The same as sd_id128_get_machine_app_specific(3): HMAC-SHA256 keyed by the machine id over the
    application's id, cut to 128 bits and marked as a version 4 UUID. The id itself is confidential.
    """
    try:
        key = uuid.UUID(machine_id).bytes
    except ValueError:
        return ""
    digest = hmac.new(key, _APP_ID.bytes, hashlib.sha256).digest()
    return uuid.UUID(bytes=digest[:16], version=4).hex
