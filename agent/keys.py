"""Makes a private key and a certificate request for it: `python -m agent.keys` prints both, in PEM.

The only part of the agent that uses `cryptography`. The running agent starts it as a process of its own
(`agent.key_process`); `fleet-agent enroll`, which ends soon, imports it.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


class KeyAndRequest(NamedTuple):
    """The key as PKCS #8 and the certificate request as PKCS #10, both in PEM."""

    key: bytes
    request: bytes


def make_key_and_request() -> KeyAndRequest:
    """A new P-256 key. The request names nobody: the collector decides whose certificate it becomes."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return KeyAndRequest(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        request.public_bytes(Encoding.PEM),
    )


if __name__ == "__main__":
    made = make_key_and_request()
    sys.stdout.buffer.write(made.key + made.request)
