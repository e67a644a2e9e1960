"""A certificate authority: it makes itself, and signs for hosts and for the collector. Pure: no files, no clock.

Profiles follow RFC 5280; hosts are named as RFC 9562 writes UUIDs. Times are milliseconds since the
Unix epoch, lifetimes seconds. Certificates know whole seconds only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from collector.identity.csr import requested_key
from fleetpulse.enrolment import urn_of

CA_LIFETIME = 3650 * 86400
"""Seconds."""

_MAX_BACKDATE = 300  # seconds that the clocks of others may be behind ours
_MAX_CA_SUBJECT = 64  # characters of a common name (RFC 5280, appendix A.1)
_HOSTNAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
"""The kinds of key with which a CA may sign."""


class AuthorityError(Exception):
    """A certificate or key is not what it should be; the text says how, and names no file."""


class Issued(NamedTuple):
    """A certificate for a host: PEM, and what table `certificate` has of it."""

    chain: bytes
    fingerprint: bytes
    issuer: bytes
    issued_at: int
    not_after: int


class Authority:
    """A CA that can sign: its certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey):
        """Raises AuthorityError if they do not belong together, or the certificate is no CA's."""
        require_ca(certificate)
        if certificate.public_key() != key.public_key():
            raise AuthorityError("the key is not the certificate's")
        self.certificate = certificate
        self.fingerprint = fingerprint_of(certificate)
        self._key = key

    @classmethod
    def create(cls, now: int, lifetime: float = CA_LIFETIME, key: PrivateKey | None = None) -> Authority:
        """A new CA, signed by itself; with a new key unless it gets one.

        It is called after its key: with the same key comes the same name, so that whatever the key
        has signed stays good.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        name = _name(f"fleetpulse CA {identifier.digest.hex()[:8]}")
        certificate = (
            _builder(name, name, public, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, _hash_for(key))
        )
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        return pem_of(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8, not encrypted."""
        return key_pem(self._key)

    @property
    def not_after(self) -> int:
        """When it ends."""
        return not_after_of(self.certificate)

    def sign_host(self, csr_der: bytes, host_id: str, now: int, lifetime: float) -> Issued:
        """A client certificate for the key in a request, whatever names the request asks for.

        Raises CsrError.
        """
        public = requested_key(csr_der)
        names = [x509.UniformResourceIdentifier(urn_of(host_id))]
        certificate = self._sign(public, host_id, names, [ExtendedKeyUsageOID.CLIENT_AUTH], now, lifetime)
        return Issued(
            pem_of(certificate),
            fingerprint_of(certificate),
            self.fingerprint,
            now,
            not_after_of(certificate),
        )

    def sign_server(self, names: Sequence[str], now: int, lifetime: float) -> tuple[bytes, bytes]:
        """A new key for the collector and a certificate for these DNS names and addresses, both PEM.

        It is a client's, too: `collector-cli doctor` shows it to the report port.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = self._sign(
            key.public_key(),
            "fleetpulse collector",
            [general_name(name) for name in names],
            usages,
            now,
            lifetime,
        )
        return key_pem(key), pem_of(certificate)

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate is one of this CA's."""
        return is_signed_by(certificate, self.certificate)

    def _sign(
        self,
        public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        common_name: str,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        now: int,
        lifetime: float,
    ) -> x509.Certificate:
        lifetime = min(lifetime, (self.not_after - now) / 1000)  # nobody accepts it for longer anyway
        return (
            _builder(_name(common_name), self.certificate.subject, public, now, lifetime)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_authority_identifier(self.certificate), critical=False)
            .sign(self._key, _hash_for(self._key))
        )


def parse_certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one. Raises AuthorityError."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except Exception:  # noqa: BLE001 - ValueError and others, as OpenSSL and the parser happen to have it
        raise AuthorityError("holds no certificate in PEM, or a broken one") from None
    for certificate in certificates:
        _require_whole(certificate)
    return certificates


def parse_keys(pem: bytes) -> list[PrivateKey]:
    """The private keys in a PEM file, at least one. Raises AuthorityError."""
    blocks = re.findall(
        rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----", pem, re.DOTALL
    )
    if not blocks:
        raise AuthorityError("holds no private key in PEM")
    return [_parse_key(block) for block in blocks]


def key_pem(key: PrivateKey) -> bytes:
    """A private key in PEM: PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER form."""
    return certificate.fingerprint(hashes.SHA256())


def not_after_of(certificate: x509.Certificate) -> int:
    """When a certificate ends."""
    return int(certificate.not_valid_after_utc.timestamp()) * 1000


def not_before_of(certificate: x509.Certificate) -> int:
    """When a certificate begins."""
    return int(certificate.not_valid_before_utc.timestamp()) * 1000


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses that a server's certificate is good for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]


def general_name(name: str) -> x509.GeneralName:
    """A DNS name or an address as certificates write it. Raises ValueError for what is neither."""
    try:
        address = ipaddress.ip_address(name)
        # Without a scope (fe80::1%eth0), which is a matter of the machine that says it.
        return x509.IPAddress(
            ipaddress.IPv6Address(int(address)) if isinstance(address, ipaddress.IPv6Address) else address
        )
    except ValueError:
        if len(name) > 253 or not _HOSTNAME.fullmatch(name):
            raise ValueError(f"{name!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(name)


def is_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether that CA has signed it."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def require_ca(certificate: x509.Certificate) -> None:
    """Raises AuthorityError unless the certificate may sign others."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        basic = None
    if basic is None or not basic.ca:
        raise AuthorityError(f"{certificate.subject.rfc4514_string()} is no CA's certificate")


def _require_whole(certificate: x509.Certificate) -> None:
    """Its parts are parsed when they are asked for: here, and not when somebody relies on them.

    Raises AuthorityError.
    """
    try:
        certificate.public_key()
        certificate.subject.rfc4514_string()
        certificate.issuer.rfc4514_string()
        not_before_of(certificate)
        not_after_of(certificate)
        _ = certificate.extensions
    except Exception as error:  # noqa: BLE001 - of many kinds, UnsupportedAlgorithm and TypeError among them
        raise AuthorityError(f"holds a certificate that cannot be used: {error}") from None


def _parse_key(pem: bytes) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise AuthorityError("the private key is encrypted; store it without a passphrase") from None
    except Exception:  # noqa: BLE001 - of many kinds, as OpenSSL happens to have it
        raise AuthorityError("the private key cannot be read") from None
    if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        return key
    raise AuthorityError("the private key is neither EC, RSA nor Ed25519")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey,
    now: int,
    lifetime: float,
) -> x509.CertificateBuilder:
    # For clocks that are behind ours; short lives, whose renewal is counted from the start, hardly move.
    start = now / 1000 - min(_MAX_BACKDATE, int(lifetime / 10))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_whole_second(start))
        .not_valid_after(_whole_second(now / 1000 + lifetime))
    )


def _whole_second(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_MAX_CA_SUBJECT])])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public = ca.public_key()
        assert isinstance(public, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey, ed25519.Ed25519PublicKey))
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
