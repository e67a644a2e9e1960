"""What enrolment leaves in the state directory, and renewal replaces.

    host.pem        the private key, then the host's certificate and what leads to its CA
    ca.pem          the CA certificates to trust
    enrolment.json  where and as what this machine enrolled

A file is replaced as a whole: written aside, flushed, renamed. Key and certificate share one file because
one is worth nothing without the other.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.certificate import CertificateError, Validity, certificates, validity
from agent.state_dir import put_in_place, write_aside

HOST_FILE, CA_FILE, ENROLMENT_FILE = "host.pem", "ca.pem", "enrolment.json"
MAX_FILE = 1 << 20  # bytes

_AGAIN = "enrol this machine again: fleet-agent enroll --force"
_BEFORE_CERTIFICATES = b"-----BEGIN CERTIFICATE-----"


class CredentialsError(Exception):
    """The machine cannot say who it is; the text says which file is why, and what to do."""


class NotEnrolledError(CredentialsError):
    """It never enrolled, or its state directory is another one."""


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as what this machine enrolled."""

    collector: str
    """HOST:PORT of the port to which it reports."""
    name: str = ""
    """What its record was called then."""
    hardware_id: str = ""
    """The hardware that it was then."""
    hostname: str = ""
    """What it is to call itself, if that is not the machine's own name."""
    ca_fingerprint: str = ""
    """Of the CA that was trusted then, SHA-256 in hex; the fleet may have another one by now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The credentials as they are on disk. PEM; times in seconds since the Unix epoch."""

    key: bytes = field(repr=False)
    chain: bytes
    ca_bundle: bytes
    validity: Validity
    stored_at: float
    """By this machine's clock."""

    @property
    def trust_id(self) -> bytes:
        """SHA-256 of the CA bundle, as Hello carries it."""
        return hashlib.sha256(self.ca_bundle).digest()

    @property
    def lifetime(self) -> float:
        """Seconds from when the certificate was stored to when it ends.

        If the two clocks disagree so much that it was stored outside the certificate's time, the
        certificate's whole time: its issuer's clock alone.
        """
        begin, end = self.validity
        return end - self.stored_at if begin <= self.stored_at < end else float(end - begin)


class CredentialFiles:
    """The files of one state directory. Every method raises CredentialsError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def enrolment(self) -> Enrolment:
        """Where and as what this machine enrolled. Raises NotEnrolledError."""
        path = self.folder / ENROLMENT_FILE
        try:
            return msgspec.json.decode(_read(path), type=Enrolment)
        except FileNotFoundError:
            raise NotEnrolledError(
                f"this machine is not enrolled (no {path}); run: fleet-agent enroll --collector HOST:PORT"
                " --token-file FILE --ca-fingerprint SHA256"
            ) from None
        except msgspec.DecodeError as error:
            raise CredentialsError(f"{path} is damaged: {error}; {_AGAIN}") from None

    def load(self, host_id: str) -> Stored:
        """The credentials of the host `host_id`, once they have been found to fit together."""
        host, ca = self.folder / HOST_FILE, self.folder / CA_FILE
        try:
            own, stored_at = _read(host), host.stat().st_mtime
            bundle = _read(ca)
        except FileNotFoundError as error:
            raise NotEnrolledError(f"{error.filename} is missing; {_AGAIN}") from None
        _check_pair(host)
        begin = own.index(_BEFORE_CERTIFICATES)
        if b" PRIVATE KEY-----" not in own[:begin]:
            raise CredentialsError(f"{host}: the key has to come before the certificates; {_AGAIN}")
        check_bundle(bundle, str(ca))
        try:
            holds = _validity_of(own[begin:], host_id)
        except CertificateError as error:
            raise CredentialsError(f"{host}: {error}; {_AGAIN}") from None
        return Stored(own[:begin], own[begin:], bundle, holds, stored_at)

    def store_pair(self, key: bytes, chain: bytes, host_id: str) -> Validity:
        """Replace key and certificate, if they fit each other and the host; from when to when they hold."""
        path = self.folder / HOST_FILE
        try:
            holds = _validity_of(chain, host_id)
        except CertificateError as error:
            raise CredentialsError(f"the certificate that was issued: {error}") from None
        aside = None
        try:
            aside = write_aside(path, key.rstrip() + b"\n" + chain)
            _check_pair(aside)
            put_in_place(aside, path)
        except OSError as error:
            raise CredentialsError(f"cannot store {path}: {error.strerror}") from None
        finally:
            if aside is not None:
                aside.unlink(missing_ok=True)
        return holds

    def store_bundle(self, bundle: bytes) -> None:
        """Replace the CA certificates, if they are some."""
        check_bundle(bundle, "the CA bundle that the collector sent")
        self._store(CA_FILE, bundle)

    def store_enrolment(self, enrolment: Enrolment) -> None:
        """Replace where and as what this machine enrolled."""
        content = msgspec.to_builtins(enrolment)
        self._store(ENROLMENT_FILE, f"{json.dumps(content, ensure_ascii=False, indent=2)}\n".encode())

    def close_to_others(self) -> bool:
        """Take the private key out of other users' reach; whether it was in it."""
        path = self.folder / HOST_FILE
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & 0o077:
                return False
            path.chmod(mode & 0o700)
        except FileNotFoundError:
            return False  # which `load` tells
        except OSError as error:
            raise CredentialsError(
                f"{path} must be readable by its owner alone, and cannot be made so: {error.strerror}"
            ) from None
        return True

    def _store(self, name: str, data: bytes) -> None:
        path = self.folder / name
        try:
            put_in_place(write_aside(path, data), path)
        except OSError as error:
            raise CredentialsError(f"cannot store {path}: {error.strerror}") from None


def check_bundle(bundle: bytes, what: str) -> None:
    """Raises CredentialsError unless a TLS client can use `bundle` as its trust anchors."""
    try:
        certificates(bundle)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=bundle.decode("ascii"))
    except (CertificateError, ssl.SSLError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{what} cannot be used: {error}; {_AGAIN}") from None


def _validity_of(chain: bytes, host_id: str) -> Validity:
    """Raises CertificateError unless the chain begins with a certificate of that host."""
    leaf = certificates(chain)[0]
    if f"urn:uuid:{host_id}".encode() not in leaf:
        raise CertificateError(f"is not a certificate of this host, {host_id}")
    return validity(leaf)


def _check_pair(path: Path) -> None:
    """Raises CredentialsError unless there is a private key in `path` and a certificate that fits it."""
    try:
        # Without a password of our own, one for an encrypted key would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = "key and certificate do not belong together"
        else:
            reason = f"no private key and certificate in PEM, or a damaged one ({error.reason or error})"
        raise CredentialsError(f"{path} cannot be used: {reason}; {_AGAIN}") from None
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from None


def _read(path: Path) -> bytes:
    """Raises FileNotFoundError, or CredentialsError if it cannot be read for any other reason."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CredentialsError(
            f"cannot read {path}: {error.strerror}; it belongs to the user as whom the agent runs"
        ) from None
    if len(data) > MAX_FILE:
        raise CredentialsError(f"{path} is larger than {MAX_FILE} bytes; {_AGAIN}")
    return data
