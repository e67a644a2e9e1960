"""Certificate requests (PKCS #10): of a machine that wants a certificate only the key counts. Pure."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

_RSA_BITS = range(2048, 4097)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class CsrError(Exception):
    """A certificate request cannot be granted; the text says why, to whoever sent it."""


def requested_key(csr_der: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The key of a request that is signed with it. Raises CsrError."""
    try:
        csr = x509.load_der_x509_csr(csr_der)
        public = csr.public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise CsrError(f"the certificate request is not PKCS #10 in DER: {error}") from None
    # Before the signature is looked at: checking one by a huge key takes long.
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size not in _RSA_BITS or public.public_numbers().e != 65537:
            raise CsrError(
                f"the certificate request has an RSA key of {public.key_size} bits; expected 2048 to 4096"
            )
    elif isinstance(public, ec.EllipticCurvePublicKey):
        if not isinstance(public.curve, (ec.SECP256R1, ec.SECP384R1)):
            raise CsrError(
                f"the certificate request has a key on the curve {public.curve.name}; expected P-256"
            )
    else:
        # Ed25519 among them: gRPC does not take it in a handshake (NO_COMMON_SIGNATURE_ALGORITHMS).
        raise CsrError(
            "the certificate request has a key of a kind that gRPC does not take; expected EC P-256"
        )
    try:
        if not isinstance(csr.signature_hash_algorithm, _HASHES):
            raise CsrError("the certificate request is signed with a weak hash; expected SHA-256")
        signed = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        signed = False
    if not signed:
        raise CsrError("the certificate request is not signed with its own key")
    return public
