"""A CA for tests, which certifies whatever it is told."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = ("127.0.0.1", "localhost")


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def at(seconds: float) -> dt.datetime:
    """So many seconds from now."""
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


class Ca:
    """Times in seconds from now."""

    def __init__(self, name: str = "test CA") -> None:
        self._key = make_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._building(self._name, self._key.public_key(), -300, 86_400)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(Encoding.PEM)
        self.fingerprint: str = certificate.fingerprint(hashes.SHA256()).hex()

    def server(
        self, names: Sequence[str] = LOOPBACK, begin: float = -60, end: float = 3600
    ) -> tuple[bytes, bytes]:
        """A server's key and certificate."""
        key = make_key()
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        certificate = (
            self._building(x509.Name([]), key.public_key(), begin, end)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return key_pem(key), certificate.public_bytes(Encoding.PEM)

    def host(
        self, host_id: str, csr: bytes | None = None, begin: float = -60, end: float = 3600
    ) -> tuple[bytes, bytes]:
        """A host's key, empty for one that came with a CSR (DER), and certificate."""
        key = None if csr is not None else make_key()
        public_key = key.public_key() if key else x509.load_der_x509_csr(csr or b"").public_key()
        certificate = (
            self._building(x509.Name([]), public_key, begin, end)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:uuid:{host_id}")]),
                critical=True,
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return key_pem(key) if key else b"", certificate.public_bytes(Encoding.PEM)

    def _building(
        self, subject: x509.Name, public_key: object, begin: float, end: float
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(at(begin))
            .not_valid_after(at(end))
        )
