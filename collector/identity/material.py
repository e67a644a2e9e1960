"""The files of certificates and keys, as the configuration places them, and what is read from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from collector.config import Identity
from collector.identity.authority import (
    Authority,
    AuthorityError,
    PrivateKey,
    fingerprint_of,
    is_signed_by,
    key_pem,
    not_after_of,
    parse_certificates,
    parse_keys,
    pem_of,
    require_ca,
)
from collector.identity.key_files import Folder, KeyringError, read, read_key


@dataclass(frozen=True, slots=True)
class Material:
    """What is in use. PEM, but for digests and parsed certificates. Private keys never show in a repr."""

    bundle: bytes
    trusted: tuple[x509.Certificate, ...]
    trust_id: bytes
    """SHA-256 of the bundle."""
    authority: Authority | None
    """The CA that signs; None: its key is elsewhere, and this collector can neither enrol nor renew."""
    older: tuple[Authority, ...]
    """Further CAs of the bundle whose keys are here: those that are on their way out."""
    server_chain: bytes
    server_certificate: x509.Certificate
    server_key: bytes
    server_issuer_fingerprint: bytes
    """The CA of the bundle that vouches for the server: what a new machine has to be told."""
    has_spare_keys: bool
    """Whether a change of the CA was cut short at its end: the key of the old one is still here."""

    def __repr__(self) -> str:
        return f"Material(trust_id={self.trust_id.hex()})"

    @property
    def is_changing(self) -> bool:
        """Whether more than one CA is trusted."""
        return len(self.trusted) > 1


class KeyPlaces:
    """Where the files are: the collector's own in `identity.dir`, or the site's.

    `inside`: that directory, opened; what is to be written there must be read there.
    """

    def __init__(self, identity: Identity, inside: Folder | None = None):
        self._identity = identity
        self._inside = inside
        self.folder = identity.dir
        self.bundle_path = identity.ca_bundle or identity.dir / "ca.pem"
        self.ca_key_path = identity.ca_key or identity.dir / "ca.key"
        self.certificate_path = identity.certificate or identity.dir / "server.pem"
        self.key_path = identity.key or identity.dir / "server.pem"
        self.has_own_ca = identity.ca_bundle is None
        self.has_own_certificate = identity.certificate is None

    @property
    def all(self) -> list[Path]:
        """Every file that matters."""
        return list(dict.fromkeys((self.bundle_path, self.ca_key_path, self.certificate_path, self.key_path)))

    def inside(self, folder: Folder) -> KeyPlaces:
        """The same, but the collector's own files are read in the opened directory."""
        return KeyPlaces(self._identity, folder)

    def read_ca_keys(self) -> list[PrivateKey]:
        """The CA's key, and perhaps those of others. Raises KeyringError."""
        pem = read_key(self.ca_key_path, "the CA's key", self._folder_of_ca, shared=not self.has_own_ca)
        return self._parsed_keys(self.ca_key_path, pem)

    def read_key(self) -> bytes:
        """The collector's key. Raises KeyringError."""
        return read_key(
            self.key_path, "the collector's key", self._folder_of_own, shared=not self.has_own_certificate
        )

    @property
    def _folder_of_ca(self) -> Folder | None:
        return self._inside if self.has_own_ca else None

    @property
    def _folder_of_own(self) -> Folder | None:
        return self._inside if self.has_own_certificate else None

    def read(self, now: int) -> Material:
        """What there is, if it fits together at that moment. Raises KeyringError."""
        # In this order, the reverse of that in which `finish` writes.
        trusted = self.read_trusted()
        ca_keys = self.read_ca_keys() if self.must_sign else []
        authorities = _authorities(trusted, ca_keys)
        authority = next((one for one in authorities if one.certificate == trusted[0]), None)
        if authority is None and self.must_sign:
            raise KeyringError(f"{self.ca_key_path}: no key of the first certificate in {self.bundle_path}")
        self.require_alive(trusted[0], now)
        certificate = read(self.certificate_path, "the collector's certificate", self._folder_of_own)
        key = self.read_key()
        chain = self._parsed(self.certificate_path, certificate, cas=False)
        own_key = self._parsed_keys(self.key_path, key)[0]
        self._require_pair(chain[0], own_key, now)
        return Material(
            b"".join(map(pem_of, trusted)),
            tuple(trusted),
            hashlib.sha256(b"".join(map(pem_of, trusted))).digest(),
            authority,
            tuple(one for one in authorities if one is not authority),
            b"".join(map(pem_of, chain)),
            chain[0],
            key_pem(own_key),
            self._vouching(chain, trusted),
            # Only behind the key of the CA that signs: before it is that of one which is yet to come.
            self.has_own_ca
            and len(trusted) == 1 < len(ca_keys)
            and ca_keys[0].public_key() == trusted[0].public_key(),
        )

    def read_trusted(self) -> list[x509.Certificate]:
        """The CAs to trust. Raises KeyringError."""
        return self._parsed(
            self.bundle_path, read(self.bundle_path, "the CA's certificate", self._folder_of_ca)
        )

    def require_alive(self, ca: x509.Certificate, now: int) -> None:
        """Raises KeyringError for a CA that has expired."""
        if not_after_of(ca) <= now:
            raise KeyringError(
                f"{self.bundle_path}: the CA that signs expired on {ca.not_valid_after_utc:%Y-%m-%d};"
                " move the directory away to start with a new one, and enrol every machine again"
            )

    def _parsed(self, path: Path, pem: bytes, *, cas: bool = True) -> list[x509.Certificate]:
        try:
            certificates = parse_certificates(pem)
            if cas:
                for certificate in certificates:
                    require_ca(certificate)
        except AuthorityError as error:
            raise KeyringError(f"{path}: {error}") from None
        return certificates

    def read_authorities(self, trusted: Sequence[x509.Certificate]) -> list[Authority]:
        """Those of them whose keys are here. Raises KeyringError."""
        return _authorities(trusted, self.read_ca_keys()) if self.must_sign else []

    def _parsed_keys(self, path: Path, pem: bytes) -> list[PrivateKey]:
        try:
            return parse_keys(pem)
        except AuthorityError as error:
            raise KeyringError(f"{path}: {error}") from None

    @property
    def must_sign(self) -> bool:
        """Whether the CA's key has to be here: only who has a certificate of the site's can do without."""
        if self.has_own_ca:
            return self.has_own_certificate or self.ca_key_path.exists()
        return self._identity.ca_key is not None

    def _require_pair(self, certificate: x509.Certificate, key: PrivateKey, now: int) -> None:
        if key.public_key() != certificate.public_key():
            raise KeyringError(f"{self.key_path}: not the key of the certificate in {self.certificate_path}")
        if not self.has_own_certificate and not_after_of(certificate) <= now:
            raise KeyringError(
                f"{self.certificate_path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )

    def _vouching(self, chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> bytes:
        """The trusted CA that signed the server's certificate, or one of those that come after it."""
        for certificate in chain:
            for ca in trusted:
                if certificate == ca or is_signed_by(certificate, ca):
                    return fingerprint_of(ca)
        raise KeyringError(
            f"{self.certificate_path}: signed by {chain[-1].issuer.rfc4514_string()}, which agents do not trust;"
            f" add that CA's certificate at the end of {self.bundle_path}"
        )


def _authorities(trusted: Sequence[x509.Certificate], keys: Sequence[PrivateKey]) -> list[Authority]:
    return [
        Authority(certificate, key)
        for certificate in trusted
        for key in keys
        if key.public_key() == certificate.public_key()
    ]
