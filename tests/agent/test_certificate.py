from __future__ import annotations

import contextlib
import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.certificate import CertificateError, certificates, pem_blocks, utc, validity
from tests.agent.pki import Ca, make_key

KEY = make_key()
CA = Ca()
TIMES = st.integers(-599_616_000, 253_402_214_400).map(
    lambda seconds: dt.datetime.fromtimestamp(seconds, dt.UTC)
)


@settings(max_examples=60, deadline=None)
@given(begin=TIMES, end=TIMES, name=st.text(max_size=60), serial=st.integers(1, 2**158))
def test_the_validity_is_the_one_that_the_library_reads(
    begin: dt.datetime, end: dt.datetime, name: str, serial: int
) -> None:
    begin, end = sorted((begin, end))
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    certificate = (
        x509.CertificateBuilder(issuer, x509.Name([]), KEY.public_key(), serial, begin, end)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x" * len(name) * 9), False
        )
        .sign(KEY, hashes.SHA256())
    )
    read = validity(certificate.public_bytes(Encoding.DER))
    assert read.not_before == certificate.not_valid_before_utc.timestamp()
    assert read.not_after == certificate.not_valid_after_utc.timestamp()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_else_is_an_error_of_its_own(data: st.DataObject) -> None:
    good = ssl.PEM_cert_to_DER_cert(CA.pem.decode())
    cut = data.draw(st.integers(0, len(good) - 1))
    garbled = good[:cut] + data.draw(st.binary(max_size=4)) + good[data.draw(st.integers(cut, len(good))) :]
    with contextlib.suppress(CertificateError):
        validity(garbled)


@pytest.mark.parametrize(
    "der", [b"", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"not a certificate at all"]
)
def test_what_is_no_certificate(der: bytes) -> None:
    with pytest.raises(CertificateError, match=r"not an X\.509 certificate"):
        validity(der)


def test_blocks_of_a_file_with_other_things_in_it() -> None:
    key, chain = CA.server()
    text = b"a comment\n" + key + b"\nsubject=x\n" + chain + CA.pem
    assert len(certificates(text)) == 2
    assert certificates(text)[1] == ssl.PEM_cert_to_DER_cert(CA.pem.decode())
    assert len(pem_blocks(text, "PRIVATE KEY")) == 1
    with pytest.raises(CertificateError, match="there is no certificate"):
        certificates(key)
    with pytest.raises(CertificateError, match="33 certificates, more than 32"):
        certificates(CA.pem * 33)
    with pytest.raises(CertificateError, match="is not in PEM"):
        certificates(CA.pem.replace(b"M", b"*"))


def test_moments_for_people() -> None:
    assert utc(1735787045.9) == "2025-01-02 03:04:05 UTC"
    assert utc(1e20) == "100000000000000000000 s since 1970"
