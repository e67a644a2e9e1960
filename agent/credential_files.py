"""What enrolment leaves in the state directory, and renewal replaces.

    host.pem         the private key, then the host's certificate and what leads to its CA
    ca.pem           the CA certificates to trust
    ca.previous.pem  those before, while no connection has proved the new ones good
    enrolment.json   where and as what this machine enrolled

A file is replaced as a whole: written aside, flushed, renamed. Key and certificate share one file because
one is worth nothing without the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.certificate import CertificateError, Validity, certificates, validity
from agent.state_dir import put_in_place, write_aside

HOST_FILE, CA_FILE, PREVIOUS_CA_FILE, ENROLMENT_FILE = (
    "host.pem",
    "ca.pem",
    "ca.previous.pem",
    "enrolment.json",
)
MAX_FILE = 1 << 20  # bytes
_ROOM = 128 << 10  # bytes; more than all the files of an enrolment together

_AGAIN = "enrol this machine again: fleet-agent enroll --force"
_SENT = "the CA bundle that the collector sent"
_BEFORE_CERTIFICATES = b"-----BEGIN CERTIFICATE-----"


class CredentialsError(Exception):
    """The machine cannot say who it is; the text says which file is why, and what to do."""


class NotEnrolledError(CredentialsError):
    """It never enrolled, or its state directory is another one."""


class NotStoredError(CredentialsError):
    """The disk did not take it; nothing is wrong with what was to be stored."""


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
    previous_bundle: bytes = b""
    """The CA certificates before `ca_bundle`, which no connection has proved good yet."""
    trusts_previous: bool = False

    @property
    def roots(self) -> bytes:
        """The CA certificates of which the collector's certificate may be."""
        return self.ca_bundle + (b"\n" + self.previous_bundle if self.trusts_previous else b"")

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

    def renewal_due(self, share: float, now: float) -> float:
        """When this share of its time is over, by this machine's clock, which says `now`."""
        begin, end = self.validity
        if self.stored_at > now:
            # The clock was ahead, and was put right since: only the issuer's is of use.
            return begin + share * (end - begin)
        return self.stored_at + share * self.lifetime


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
        _check_pair(str(host), str(host))
        begin = own.index(_BEFORE_CERTIFICATES)
        if b" PRIVATE KEY-----" not in own[:begin]:
            raise CredentialsError(f"{host}: the key has to come before the certificates; {_AGAIN}")
        check_bundle(bundle, str(ca), _AGAIN)
        try:
            holds = _validity_of(own[begin:], host_id)
        except CertificateError as error:
            raise CredentialsError(f"{host}: {error}; {_AGAIN}") from None
        return Stored(own[:begin], own[begin:], bundle, holds, stored_at, self._previous_bundle())

    def store_pair(self, key: bytes, chain: bytes, host_id: str) -> Validity:
        """Replace key and certificate, if they fit each other and the host; from when to when they hold.

        Raises NotStoredError.
        """
        holds = check_pair(key, chain, host_id)
        self._store(HOST_FILE, _joined(key, chain))
        return holds

    def store_bundle(self, bundle: bytes) -> None:
        """Trust these CA certificates and no other, if they are some. Raises NotStoredError."""
        check_bundle(bundle, _SENT)
        self._store(CA_FILE, bundle)
        self._forget_previous()

    def trust(self, bundle: bytes) -> bool:
        """Trust these CA certificates, if they are some; whether they were others until now.

        The last ones that have proved good are kept until `proved`. Raises NotStoredError.
        """
        check_bundle(bundle, _SENT)
        current = self._bundle()
        if bundle == current:
            return False
        good = self._previous_bundle() or current
        if bundle != good:
            self._store(PREVIOUS_CA_FILE, good)
        self._store(CA_FILE, bundle)
        if bundle == good:
            self._forget_previous()
        return True

    def proved(self, bundle: bytes) -> None:
        """The collector has shown a certificate of these CA certificates: those before are forgotten."""
        if self._bundle() == bundle:
            self._forget_previous()

    @contextmanager
    def room(self) -> Iterator[None]:
        """There is room for everything that an enrolment stores, when this ends. Raises NotStoredError."""
        try:
            aside = write_aside(self.folder / "room", os.urandom(_ROOM))
        except OSError as error:
            raise NotStoredError(
                f"there is no room for what enrolling leaves in {self.folder}: {error.strerror}; the token"
                " was not used"
            ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def store_enrolment(self, enrolment: Enrolment) -> None:
        """Replace where and as what this machine enrolled."""
        content = msgspec.to_builtins(enrolment)
        self._store(ENROLMENT_FILE, f"{json.dumps(content, ensure_ascii=False, indent=2)}\n".encode())

    def close_to_others(self) -> bool:
        """Take the private key out of other users' reach; whether it was in it."""
        path = self.folder / HOST_FILE
        try:
            # Not by its path: where root looks after another user's directory, that could be a link by then.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                if not mode & 0o077:
                    return False
                os.fchmod(descriptor, mode & 0o700)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return False  # which `load` tells
        except OSError as error:
            raise CredentialsError(
                f"{path} must be readable by its owner alone, and cannot be made so: {error.strerror}"
            ) from None
        return True

    def _bundle(self) -> bytes:
        try:
            return _read(self.folder / CA_FILE)
        except FileNotFoundError:
            return b""

    def _previous_bundle(self) -> bytes:
        """Empty if there is none that can be used."""
        try:
            bundle = _read(self.folder / PREVIOUS_CA_FILE)
            check_bundle(bundle, PREVIOUS_CA_FILE)
        except (FileNotFoundError, CredentialsError):
            return b""
        return bundle

    def _forget_previous(self) -> None:
        path = self.folder / PREVIOUS_CA_FILE
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise NotStoredError(f"cannot remove {path}: {error.strerror}") from None

    def _store(self, name: str, data: bytes) -> None:
        path = self.folder / name
        aside = None
        try:
            aside = write_aside(path, data)
            put_in_place(aside, path)
        except OSError as error:
            if aside is not None:
                with contextlib.suppress(OSError):
                    aside.unlink(missing_ok=True)
            raise NotStoredError(f"cannot store {path}: {error.strerror}") from None


def check_bundle(bundle: bytes, what: str, advice: str = "") -> None:
    """Raises CredentialsError unless `bundle` holds CA certificates that a TLS client can use."""
    try:
        certificates(bundle)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=bundle.decode("ascii"))
    except (CertificateError, ssl.SSLError, UnicodeDecodeError) as error:
        raise _unusable(what, str(error), advice) from None
    if not context.cert_store_stats()["x509_ca"]:
        raise _unusable(what, "none of its certificates is a CA's", advice)


def check_pair(key: bytes, chain: bytes, host_id: str) -> Validity:
    """From when to when an issued certificate holds.

    Raises CredentialsError unless it fits the key and the host.
    """
    try:
        holds = _validity_of(chain, host_id)
    except CertificateError as error:
        raise CredentialsError(f"the certificate that was issued: {error}") from None
    # The TLS library reads files only. This one needs no disk, which may be full.
    with os.fdopen(os.memfd_create(HOST_FILE), "wb") as file:
        file.write(_joined(key, chain))
        file.flush()
        _check_pair(f"/proc/self/fd/{file.fileno()}", "the certificate that was issued", advice="")
    return holds


def _joined(key: bytes, chain: bytes) -> bytes:
    return key.rstrip() + b"\n" + chain


def _unusable(what: str, reason: str, advice: str) -> CredentialsError:
    return CredentialsError(f"{what} cannot be used: {reason}{f'; {advice}' if advice else ''}")


def _validity_of(chain: bytes, host_id: str) -> Validity:
    """Raises CertificateError unless the chain begins with a certificate of that host."""
    leaf = certificates(chain)[0]
    if f"urn:uuid:{host_id}".encode() not in leaf:
        raise CertificateError(f"is not a certificate of this host, {host_id}")
    return validity(leaf)


def _check_pair(path: str, what: str, advice: str = _AGAIN) -> None:
    """Raises CredentialsError unless there is a private key in `path` and a certificate that fits it."""
    try:
        # Without a password of our own, one for an encrypted key would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = "key and certificate do not belong together"
        else:
            reason = f"no private key and certificate in PEM, or a damaged one ({error.reason or error})"
        raise _unusable(what, reason, advice) from None
    except OSError as error:
        raise CredentialsError(f"cannot read {what}: {error.strerror}") from None


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
