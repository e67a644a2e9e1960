"""The certificate that a connection's peer has proved to have."""

from __future__ import annotations

import hashlib
import ssl
from typing import NamedTuple

from grpc import StatusCode

from collector.ingest.endings import Refused
from fleetpulse.enrolment import urn_of
from fleetpulse.rpc import ServedStream


class PeerCertificate(NamedTuple):
    """A certificate that a trusted CA signed: SHA-256 of its DER form, and the URIs that it names."""

    fingerprint: bytes
    uris: frozenset[str]

    def names(self, host_id: str) -> bool:
        """Whether it is that of a host, and no other's too."""
        return self.uris == {urn_of(host_id)}


def certificate_of(context: ServedStream) -> PeerCertificate | None:
    """The peer's certificate; None on a connection without TLS.

    Raises Refused for a peer that has none, which no listener of ours lets in.
    """
    properties = context.auth_context()
    if b"ssl" not in properties.get("transport_security_type", ()):
        return None
    pem = next(iter(properties.get("x509_pem_cert", ())), b"")
    if not pem:
        raise Refused(StatusCode.UNAUTHENTICATED, "a certificate is needed here", "unknown_certificate")
    der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    uris = frozenset(uri.decode("utf-8", "replace") for uri in properties.get("peer_uri", ()))
    return PeerCertificate(hashlib.sha256(der).digest(), uris)
