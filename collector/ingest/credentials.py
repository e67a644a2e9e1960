"""What the streams need to know of certificates, whoever makes them."""

from __future__ import annotations

from typing import Protocol

from collector.core.identity import Bearer, TrustedCas


class Credentials(Protocol):
    """Whom hosts are to trust, and how they get a new certificate. Used on the event loop of the streams."""

    @property
    def trust(self) -> TrustedCas:
        """The CAs that hosts are to trust now."""

    async def renew(self, bearer: Bearer, csr: bytes) -> bytes:
        """A new certificate for a host, as PEM with what leads to its CA, once it is accepted here.

        `csr` is PKCS #10 in DER. Raises RenewalRefused or StoreError.
        """
