"""How much one certificate may have open at once, so that it does not take what all share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from grpc import StatusCode

from collector.core.peer import address_of
from collector.ingest.endings import Refused
from collector.ingest.peer_certificate import PeerCertificate, certificate_of
from fleetpulse.rpc import ServedStream

# An agent needs one, and another while it changes over. A copy elsewhere must not take those.
_FROM_AN_ADDRESS = 8
_IN_ALL = 64

_Key = TypeVar("_Key")


class OpenCalls:
    """The calls on the report port that are open now. Used on one event loop only."""

    def __init__(self) -> None:
        self._by_peer: Counter[tuple[bytes, str]] = Counter()  # by fingerprint and address
        self._by_fingerprint: Counter[bytes] = Counter()

    @contextmanager
    def counted(self, context: ServedStream) -> Iterator[PeerCertificate | None]:
        """The certificate of a call, one of a few that it may have open; None without TLS. Raises Refused."""
        certificate = certificate_of(context)
        if certificate is None:
            yield None
            return
        fingerprint = certificate.fingerprint
        peer = fingerprint, address_of(context.peer())
        if self._by_peer[peer] >= _FROM_AN_ADDRESS or self._by_fingerprint[fingerprint] >= _IN_ALL:
            text = f"this certificate has {self._by_fingerprint[fingerprint]} streams open already"
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, text, "too_many_streams")
        self._by_peer[peer] += 1
        self._by_fingerprint[fingerprint] += 1
        try:
            yield certificate
        finally:
            _take_one(self._by_peer, peer)
            _take_one(self._by_fingerprint, fingerprint)


def _take_one(counter: Counter[_Key], key: _Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
