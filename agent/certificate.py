"""What the running agent has to know of a certificate: its bytes, and from when to when it holds.

Reading this much takes a few lines. The library that reads everything takes 10 MB of memory, which an
agent would occupy for three months to use it once.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import NamedTuple

MAX_CERTIFICATES = 32
"""In a bundle or a chain; more is no mistake that anybody makes in good faith."""

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s(.*?)-----END \1-----", re.DOTALL)
_SEQUENCE, _INTEGER, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x02, 0xA0, 0x17, 0x18


class CertificateError(ValueError):
    """Not the certificates that were expected; the text says what is wrong."""


class Validity(NamedTuple):
    """From when to when a certificate holds, in seconds since the Unix epoch, both inclusive."""

    not_before: int
    not_after: int

    @property
    def until(self) -> str:
        """The last second, in UTC, for people."""
        return utc(self.not_after)


def utc(seconds: float) -> str:
    """A moment as people read it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s since 1970"


def pem_blocks(pem: bytes, label: str) -> list[bytes]:
    """The content of each block with this label (RFC 7468). Raises CertificateError if one is garbled."""
    try:
        return [
            base64.b64decode(b"".join(body.split()), validate=True)
            for found, body in _BLOCK.findall(pem)
            if found == label.encode()
        ]
    except binascii.Error as error:
        raise CertificateError(f"{label} is not in PEM: {error}") from None


def certificates(pem: bytes) -> list[bytes]:
    """Every certificate in `pem`, in DER, at least one. Raises CertificateError."""
    found = pem_blocks(pem, "CERTIFICATE")
    if not found:
        raise CertificateError("there is no certificate (PEM)")
    if len(found) > MAX_CERTIFICATES:
        raise CertificateError(f"{len(found)} certificates, more than {MAX_CERTIFICATES}")
    return found


def validity(der: bytes) -> Validity:
    """From when to when a certificate in DER holds (RFC 5280, section 4.1). Raises CertificateError."""
    try:
        _, certificate, _ = _take(der)
        _, fields, _ = _take(certificate)
        tag, _, rest = _take(fields)
        if tag == _VERSION:
            tag, _, rest = _take(rest)
        for expected in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, algorithm, issuer
            if tag != expected:
                raise CertificateError("not an X.509 certificate")
            tag, content, rest = _take(rest)
        if tag != _SEQUENCE:
            raise CertificateError("not an X.509 certificate")
        kind, begin, content = _take(content)
        not_before = _time(kind, begin)
        kind, end, _ = _take(content)
        return Validity(not_before, _time(kind, end))
    except (IndexError, ValueError) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"not an X.509 certificate: {error}") from None


def _take(data: bytes) -> tuple[int, bytes, bytes]:
    """The tag and the content of the first element of DER data, and what follows it."""
    tag, length, begin = data[0], data[1], 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(data[2:begin], "big")
    if begin + length > len(data):
        raise CertificateError("not an X.509 certificate: cut off")
    return tag, data[begin : begin + length], data[begin + length :]


def _time(tag: int, content: bytes) -> int:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280, section 4.1.2.5.1: the years from 50 on are of the last century.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise CertificateError("not an X.509 certificate: no validity")
    return int(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp())
