"""How a machine that trusts nobody yet comes to trust the right CA.

Its admin gave it the CA's fingerprint. Whoever answers at the address is asked for its CA certificates over
a connection that believes nothing but the very certificate that was just shown; only the one CA with that
fingerprint is believed from then on. An impostor gets as far as to show that it has another CA.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import grpc
from cryptography import x509

from agent.certificate import CertificateError, certificates, utc, validity
from agent.handshake import MAX_NAMES, is_name_mismatch
from agent.target import Endpoint
from agent.terminal import escape
from fleetpulse.enrolment import Enrolled, EnrolRequest, enroll, fetch_trust

_CONNECT_TIMEOUT = 10.0  # seconds
_CALL_TIMEOUT = 20.0  # seconds
_SEEN_TIMEOUT = 5.0  # seconds
_MAX_DETAILS = 1_000  # characters of what the collector says
_OPTIONS = (
    ("grpc.enable_retries", 0),  # a token may be good for one try
    ("grpc.enable_http_proxy", 0),  # as the agent itself
    ("grpc.max_receive_message_length", 1 << 20),
)
# It understood and said no. The same again would change nothing.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)
_Answer = TypeVar("_Answer")


class EnrolmentFailedError(Exception):
    """The machine did not enrol; the text says why."""


class EnrolmentRefusedError(EnrolmentFailedError):
    """The collector understood and said no: the same again will not help."""


class _WrongNameError(EnrolmentFailedError):
    """The collector's certificate is for other names."""


def parse_fingerprint(text: str) -> bytes:
    """A SHA-256 as people write it: hex digits in any case, with or without colons and "sha256:".

    Raises ValueError.
    """
    digits = re.sub(r"^sha-?256[:=]", "", text.strip().lower()).replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ValueError(
            f"expected the SHA-256 of the CA's certificate, 64 hex digits, got {text.strip()[:80]!r}"
        )
    return bytes.fromhex(digits)


def fingerprint(der: bytes) -> bytes:
    """SHA-256 of a certificate in DER."""
    return hashlib.sha256(der).digest()


class EnrolmentPort:
    """A collector's port for machines that want to enrol. Every method raises EnrolmentFailedError."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._shown = ""  # the server's certificate, PEM

    def pinned_ca(self, wanted: bytes, now: float) -> bytes:
        """The one CA certificate with this fingerprint, in PEM; `now` in seconds."""
        self._shown = self._shown_certificate()
        self._check_time(now)
        try:
            bundle = self._call(self._shown.encode(), lambda channel: fetch_trust(channel, _CALL_TIMEOUT))
        except _WrongNameError:
            self._be_seen()
            raise
        try:
            found = certificates(bundle)
        except CertificateError as error:
            raise EnrolmentFailedError(f"{self._endpoint} sent no CA certificates: {error}") from None
        for der in found:
            if fingerprint(der) == wanted:
                return ssl.DER_cert_to_PEM_cert(der).encode()
        seen = ", ".join(fingerprint(der).hex() for der in found)
        raise EnrolmentFailedError(
            f"{self._endpoint} has no CA with the fingerprint {wanted.hex()}; it has {seen}. Either the"
            " fingerprint is wrong (collector-cli ca show tells the right one), or this is not your collector"
        )

    def enroll(self, ca: bytes, request: EnrolRequest) -> Enrolled:
        """Trade the token for a certificate, with whoever has a certificate of that CA.

        Raises EnrolmentRefusedError.
        """
        return self._call(ca, lambda channel: enroll(channel, request, _CALL_TIMEOUT))

    def _be_seen(self) -> None:
        """Ask under a name that is in the certificate, too.

        The collector tells its admin of those who ask and do not enrol, and hears of nobody else.
        """
        name = next(iter(_names_in(self._shown)), "")
        with suppress(EnrolmentFailedError):
            self._call(self._shown.encode(), lambda channel: fetch_trust(channel, _SEEN_TIMEOUT), name)

    def _shown_certificate(self) -> str:
        try:
            return ssl.get_server_certificate(self._endpoint, timeout=_CONNECT_TIMEOUT)
        except ssl.SSLError as error:
            raise EnrolmentFailedError(
                f"what listens at {self._endpoint} does not speak TLS as a collector does ({error.reason}); is"
                " the port right? See --enroll-port"
            ) from None
        except OSError as error:  # TimeoutError and failed look-ups of the name are some, too
            raise EnrolmentFailedError(
                f"cannot reach {self._endpoint}: {error.strerror or error}. --collector takes the port to which"
                " hosts report; enrolment is on the port after it, unless --enroll-port says otherwise"
            ) from None

    def _check_time(self, now: float) -> None:
        try:
            begin, end = validity(ssl.PEM_cert_to_DER_cert(self._shown))
        except (CertificateError, ValueError) as error:
            raise EnrolmentFailedError(
                f"{self._endpoint} shows a certificate that is none: {error}"
            ) from None
        if not begin <= now <= end:
            when = f"holds only from {utc(begin)}" if now < begin else f"expired on {utc(end)}"
            raise EnrolmentFailedError(
                f"the certificate of {self._endpoint} {when}; this machine's clock says {utc(now)}: set the"
                " clock that is wrong, here or on the collector"
            )

    def _call(self, root: bytes, call: Callable[[grpc.Channel], _Answer], name: str = "") -> _Answer:
        """`name` is what the server's certificate is to be for, if not for the endpoint."""
        credentials = grpc.ssl_channel_credentials(root)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
        with grpc.secure_channel(str(self._endpoint), credentials, options=options) as channel:
            try:
                return call(channel)
            except grpc.RpcError as error:
                raise self._failure(error.code(), escape((error.details() or "")[:_MAX_DETAILS])) from None

    def _failure(self, code: grpc.StatusCode, details: str) -> EnrolmentFailedError:
        if code in _REFUSALS:
            return EnrolmentRefusedError(details or f"no reason given ({code.name})")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return EnrolmentFailedError(
                f"{self._endpoint} takes no enrolments; is the port right? See --enroll-port"
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return EnrolmentFailedError(f"{details or 'the collector is busy'}; try again later")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return EnrolmentFailedError(f"{self._endpoint} did not answer within {_CALL_TIMEOUT:g} s")
        if is_name_mismatch(details):
            return _WrongNameError(
                f"the certificate of {self._endpoint} is for {_names(self._shown)}, not for"
                f" {self._endpoint.host}; call it by one of these, or add the name to identity.names in the"
                " collector's configuration"
            )
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return EnrolmentFailedError(
                f"the CA with the given fingerprint did not sign the certificate of {self._endpoint}:"
                f" this is not your collector ({details})"
            )
        if "Socket closed" in details or "reset by peer" in details:
            return EnrolmentFailedError(
                f"{self._endpoint} closes connections without a client certificate: it looks like the port"
                " to which hosts report; enrolment is on the port after it; see --collector and --enroll-port"
            )
        return EnrolmentFailedError(f"{self._endpoint}: {details or 'no reason given'} ({code.name})")


def _names(pem: str) -> str:
    """What a certificate says it is for, in one line."""
    return escape(", ".join(_names_in(pem)[:MAX_NAMES])[:_MAX_DETAILS]) or "nobody"


def _names_in(pem: str) -> list[str]:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return [str(name.value) for name in names]
