"""The CA: what it signs, and what it refuses."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from collector.identity.authority import (
    Authority,
    AuthorityError,
    fingerprint_of,
    general_name,
    names_of,
    not_after_of,
    not_before_of,
    parse_certificates,
    parse_keys,
)
from collector.identity.csr import CsrError

NOW = 1_800_000_000_123
DAY = 86_400
HOST = str(uuid.UUID(int=7))
CA = Authority.create(NOW)


def csr(
    key: ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | dsa.DSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | None = None,
    subject: str = "me",
) -> bytes:
    """What asks for the names of others."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("collector.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def parsed(pem: bytes) -> x509.Certificate:
    [certificate] = parse_certificates(pem)
    return certificate


def verify(certificate: x509.Certificate, ca: Authority, at: int) -> list[x509.GeneralName]:
    """The names of a client's certificate, if another implementation of RFC 5280 accepts it."""
    when = datetime.fromtimestamp(at / 1000, UTC)
    verifier = PolicyBuilder().store(Store([ca.certificate])).time(when).build_client_verifier()
    subjects = verifier.verify(certificate, []).subjects
    assert subjects is not None
    return subjects


def test_a_host_gets_a_certificate_for_its_uuid_and_nothing_that_it_asked_for() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = CA.sign_host(csr(key, subject="root"), HOST, NOW, 90 * DAY)
    certificate = parsed(issued.chain)
    assert verify(certificate, CA, NOW) == [x509.UniformResourceIdentifier(f"urn:uuid:{HOST}")]
    assert certificate.subject.rfc4514_string() == f"CN={HOST}"
    assert certificate.public_key() == key.public_key()
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (issued.fingerprint, issued.issuer) == (fingerprint_of(certificate), CA.fingerprint)
    assert (issued.issued_at, issued.not_after) == (NOW, not_after_of(certificate))
    assert issued.not_after == (NOW // 1000 + 90 * DAY) * 1000
    assert 60_000 <= NOW - not_before_of(certificate) <= 600_000
    verify(certificate, CA, issued.not_after)
    with pytest.raises(VerificationError):
        verify(certificate, CA, issued.not_after + 1000)
    with pytest.raises(VerificationError):
        verify(certificate, Authority.create(NOW), NOW)


def test_a_short_life_is_hardly_backdated() -> None:
    certificate = parsed(CA.sign_host(csr(), HOST, NOW, 6).chain)
    assert 6000 <= not_after_of(certificate) - not_before_of(certificate) <= 7000


def test_no_certificate_outlives_its_ca() -> None:
    ca = Authority.create(NOW, 10)
    assert ca.sign_host(csr(), HOST, NOW, DAY).not_after == ca.not_after


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_other_strong_keys(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    assert verify(parsed(CA.sign_host(csr(key), HOST, NOW, DAY).chain), CA, NOW)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"", "not PKCS #10"),
        (b"-----BEGIN CERTIFICATE REQUEST-----", "not PKCS #10"),
        (csr() + b"\0", "not PKCS #10"),
        (csr(rsa.generate_private_key(65537, 1024)), "RSA key of 1024 bits; expected 2048 to 4096"),
        (csr(rsa.generate_private_key(3, 2048)), "RSA key"),
        (csr(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1; expected P-256"),
        (csr(dsa.generate_private_key(2048)), "kind that gRPC does not take"),
        (csr(ed25519.Ed25519PrivateKey.generate()), "kind that gRPC does not take"),
    ],
)
def test_what_is_no_good_request(request_: bytes, said: str) -> None:
    with pytest.raises(CsrError, match=said):
        CA.sign_host(request_, HOST, NOW, DAY)


def test_a_request_with_the_key_of_somebody_else() -> None:
    mine, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    spki = [
        key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        for key in (mine, theirs)
    ]
    forged = csr(mine).replace(*spki)
    with pytest.raises(CsrError, match="not signed with its own key"):
        CA.sign_host(forged, HOST, NOW, DAY)


def test_broken_requests_are_refused_and_nothing_else_happens() -> None:
    whole, dice = csr(), random.Random(1)
    for _ in range(2_000):
        broken = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        if bytes(broken) != whole:
            with pytest.raises(CsrError):
                CA.sign_host(bytes(broken), HOST, NOW, DAY)


def test_a_server_gets_a_key_and_its_names() -> None:
    names = ["fleet.example", "*.lab.example", "192.0.2.7", "2001:db8::7"]
    key, chain = CA.sign_server(names, NOW, DAY)
    certificate = parsed(chain)
    assert names_of(certificate) == names
    assert parse_keys(key)[0].public_key() == certificate.public_key()
    assert CA.has_signed(certificate)
    assert verify(certificate, CA, NOW)  # as a client, too
    store = Store([CA.certificate])
    when = datetime.fromtimestamp(NOW / 1000, UTC)
    PolicyBuilder().store(store).time(when).build_server_verifier(x509.DNSName("fleet.example")).verify(
        certificate, []
    )


def test_a_ca_from_the_same_key_has_the_same_name() -> None:
    first = Authority.create(NOW)
    [key] = parse_keys(first.key_pem)
    again = Authority.create(NOW + 1000, key=key)
    assert again.certificate.subject == first.certificate.subject
    assert again.fingerprint != first.fingerprint
    assert verify(parsed(first.sign_host(csr(), HOST, NOW, DAY).chain), again, NOW + 1000)


def test_who_may_be_a_ca() -> None:
    [key] = parse_keys(CA.key_pem)
    with pytest.raises(AuthorityError, match="not the certificate's"):
        Authority(Authority.create(NOW).certificate, key)
    own, chain = CA.sign_server(["x"], NOW, DAY)
    with pytest.raises(AuthorityError, match=r"CN=fleetpulse collector is no CA's"):
        Authority(parsed(chain), parse_keys(own)[0])


def test_keys_and_certificates_that_cannot_be_read() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(AuthorityError, match="without a passphrase"):
        parse_keys(encrypted)
    with pytest.raises(AuthorityError, match="cannot be read"):
        parse_keys(CA.key_pem.replace(b"M", b"-"))
    with pytest.raises(AuthorityError, match="no private key"):
        parse_keys(CA.certificate_pem)
    with pytest.raises(AuthorityError, match="no certificate"):
        parse_certificates(CA.key_pem)
    assert len(parse_keys(CA.key_pem + encrypted[:0] + Authority.create(NOW).key_pem)) == 2


@pytest.mark.parametrize("name", ["", "a b", "x" * 64, "é.example", "a..b", "x\n", "1.2.3.4.5 ", "." * 3])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
        general_name(name)


def test_an_address_is_written_without_its_scope() -> None:
    assert general_name("fe80::1%eth0") == general_name("fe80::1")


def test_a_ca_lives_ten_years() -> None:
    life = timedelta(milliseconds=CA.not_after - NOW)
    assert timedelta(days=3649) < life <= timedelta(days=3650)
