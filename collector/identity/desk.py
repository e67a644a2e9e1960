"""Where machines become hosts, and hosts get their next certificate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from collector.core.identity import Bearer, RenewalRefused, TrustedCas
from collector.core.render import count
from collector.core.status import Event, EventKind, HostRecord
from collector.identity.authority import Issued
from collector.identity.csr import CsrError
from collector.identity.keyring import Keyring
from collector.identity.material import Material
from collector.identity.tokens import SHAPE, hash_token, is_token
from collector.store.certificates import (
    CertificateRow,
    add_certificate,
    forget_certificates,
    load_certificates,
    lock_certificates,
    revoke_host,
)
from collector.store.clerk import Clerk
from collector.store.enrolment import (
    KnownRecord,
    record_number,
    record_of,
    take_over,
)
from collector.store.errors import StoreConflict
from collector.store.hosts import add_hosts, assign_groups
from collector.store.statuses import write_events
from collector.store.store import Store, Transaction
from collector.store.tokens import StoredToken, find_tokens, spend_token
from fleetpulse.enrolment import Enrolled, EnrolRequest

_WAITING_ENROLMENTS = 64
_WAITING_RENEWALS = 1_000
_CERTIFICATES = 16  # that a host may have; one that renews uses the new one at once, unless it is lost

_NO_CA_KEY = "this collector has no CA key and cannot sign certificates"

# What a host is expected to do until its first Hello says better. Milliseconds.
_INTERVAL = 15_000
_TTL = 45_000


class EnrolmentRefused(Exception):
    """A machine does not become a host. The text is for the admin at that machine.

    `kind` names the reason, `status` is the name of a gRPC status code.
    """

    def __init__(self, kind: str, status: str, text: str):
        super().__init__(text)
        self.kind = kind
        self.status = status


class Applicant(NamedTuple):
    """A machine that wants to be a host: what it says, and its address."""

    request: EnrolRequest
    address: str


class Desk:
    """Trades tokens for certificates, and old certificates for new ones.

    `now` is the collector's clock in milliseconds, `lifetime` that of certificates in seconds.
    Certificates follow the system's clock, because those who check them do. Enrolments and renewals wait for
    threads of their own, so that strangers cannot hold up hosts. Each thread uses one connection for some
    milliseconds; in the smallest pool they take turns with the sweeper and the writer, and who gets none
    within the pool's timeout is told to try again.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        now: Callable[[], int],
        lifetime: float,
        system_now: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ):
        self._system_now = system_now
        self._keyring = keyring
        self._now = now
        self._lifetime = lifetime
        self._enrolments = Clerk(store, "enrolments", _WAITING_ENROLMENTS)
        self._renewals = Clerk(store, "renewals", _WAITING_RENEWALS)

    @property
    def trust(self) -> TrustedCas:
        """Whose certificates are to be trusted now."""
        material = self._keyring.current
        issuer = material.authority.fingerprint if material.authority else b""
        return TrustedCas(material.bundle, material.trust_id, issuer)

    async def enroll(self, request: EnrolRequest, address: str) -> Enrolled:
        """Make a host of the machine. Raises EnrolmentRefused, Busy or another StoreError."""
        if self._keyring.current.authority is None:  # spares the database the question
            raise _no_ca_key()
        if not is_token(request.token):
            raise EnrolmentRefused(
                "malformed_token", "UNAUTHENTICATED", f"this is no token; a token is {SHAPE}"
            )
        applicant = Applicant(request, address)
        return await self._enrolments.run(lambda tx: self._enroll(tx, applicant))

    async def renew(self, bearer: Bearer, csr: bytes) -> bytes:
        """The host's next certificate, as a PEM chain; see `ingest.credentials`.

        Raises RenewalRefused, Busy or another StoreError.
        """
        if self._keyring.current.authority is None:  # as above
            raise RenewalRefused(_NO_CA_KEY)
        return await self._renewals.run(lambda tx: self._renew(tx, bearer, csr))

    async def note_refusal(self, hostname: str, text: str) -> None:
        """Write the event of a refused attempt. Raises StoreError."""
        event = Event(self._now(), EventKind.ENROLMENT_REFUSED, message=text)
        await self._enrolments.run(lambda tx: write_events(tx, [(None, hostname, event)]))

    def close(self, timeout: float) -> None:
        """Let go of the database, within about twice so many seconds."""
        self._enrolments.close(timeout)
        self._renewals.close(timeout)

    def _latest_material(self) -> Material:
        """What is in the files at this moment: `ca finish` must not be over before an old CA signs for the last time."""
        self._keyring.refresh()
        return self._keyring.current

    def _enroll(self, tx: Transaction, applicant: Applicant) -> Enrolled:
        request, now = applicant.request, self._now()
        token = find_tokens(tx, [hash_token(request.token)]).get(hash_token(request.token))
        token = _usable(token, now)
        record = _record_for(tx, token, request, now)
        if not spend_token(tx, token, now):
            # Somebody used or ended it since it was read.
            _usable(find_tokens(tx, [token.hash]).get(token.hash), now)
            raise StoreConflict("somebody else changed the same token")
        material = self._latest_material()
        if material.authority is None:
            raise _no_ca_key()
        try:
            issued = material.authority.sign_host(
                request.csr, request.host_id, self._system_now(), self._lifetime
            )
        except CsrError as error:
            raise EnrolmentRefused("malformed_csr", "INVALID_ARGUMENT", str(error)) from None
        if record is None:
            host, name = _add(tx, applicant, now), request.hostname
        else:
            host, name = record.host, record.hostname
            take_over(tx, record, request.host_id, request.machine_id, request.hardware_id)
            # Whoever still speaks with an older certificate is cut off, like everyone whose is revoked.
            revoke_host(tx, host, now)
        assign_groups(tx, host, token.groups)
        _accept(tx, host, issued)
        message = (
            f"with token {token.number} from {applicant.address}; certificate {_short(issued.fingerprint)}"
        )
        write_events(tx, [(host, name, Event(now, EventKind.ENROLLED, message=message))])
        return Enrolled(issued.chain, material.bundle, name)

    def _renew(self, tx: Transaction, bearer: Bearer, csr: bytes) -> bytes:
        now = self._now()
        lock_certificates(tx, bearer.host)
        certificates = load_certificates(tx, [bearer.host]).get(bearer.host, [])
        valid = [row for row in certificates if row.is_valid(self._system_now())]
        record = record_number(tx, bearer.host)
        if record is None or record.host_id != bearer.host_id:
            raise RenewalRefused("this host is not known here any more; enrol it again")
        # The host may have a newer one, and this may be a thief with the one that was revoked.
        if bearer.fingerprint not in [row.fingerprint for row in valid]:
            raise RenewalRefused("the certificate of this stream is not valid any more; enrol the host again")
        authority = self._latest_material().authority
        if authority is None:
            raise RenewalRefused(_NO_CA_KEY)
        try:
            issued = authority.sign_host(csr, bearer.host_id, self._system_now(), self._lifetime)
        except CsrError as error:
            raise RenewalRefused(str(error)) from None
        # Those that are newer than the bearer's never arrived, or were not stored there: the latest may yet be used.
        unused = [row.fingerprint for row in valid if row.fingerprint != bearer.fingerprint]
        forget_certificates(tx, unused[_CERTIFICATES - 2 :])
        # The newest must be the last one also after the clock was set back: its use does away with the others.
        _accept(tx, bearer.host, issued._replace(issued_at=max(issued.issued_at, valid[0].issued_at + 1)))
        message = f"certificate {_short(issued.fingerprint)}"
        write_events(tx, [(bearer.host, bearer.name, Event(now, EventKind.RENEWED, message=message))])
        return issued.chain


def _no_ca_key() -> EnrolmentRefused:
    return EnrolmentRefused(
        "no_ca_key",
        "FAILED_PRECONDITION",
        f"{_NO_CA_KEY}; enrol at one that has",
    )


def _usable(token: StoredToken | None, now: int) -> StoredToken:
    if token is None:
        raise EnrolmentRefused(
            "unknown_token",
            "UNAUTHENTICATED",
            "this token is not known here: it was revoked, or is of another collector; "
            "make one: collector-cli token create",
        )
    if token.was_ended:
        raise EnrolmentRefused(
            "ended_token",
            "UNAUTHENTICATED",
            "this token is not valid any more: its host was revoked or rebound since; "
            f"make another: collector-cli token create --host {token.hostname}",
        )
    if now >= token.expires_at:
        ago = (now - token.expires_at) // 1000
        raise EnrolmentRefused(
            "expired_token",
            "UNAUTHENTICATED",
            f"this token has expired {ago} s ago; make another: collector-cli token create",
        )
    if token.uses_left <= 0:
        raise _used_up(token)
    return token


def _used_up(token: StoredToken) -> EnrolmentRefused:
    return EnrolmentRefused(
        "used_token",
        "UNAUTHENTICATED",
        f"this token was good for {count(token.uses, 'use')} and is used up; make another: collector-cli token create",
    )


def _record_for(tx: Transaction, token: StoredToken, request: EnrolRequest, now: int) -> KnownRecord | None:
    """The record that the machine takes over; None: it gets a new one."""
    record = record_number(tx, token.host) if token.host is not None else None
    _check_name(token, record, request.hostname)
    known = record_of(tx, request.host_id)
    if record is None:
        if known is None:
            return None
        raise EnrolmentRefused(
            "known_host",
            "ALREADY_EXISTS",
            f"host {request.host_id} is known as {known.hostname}, and this token is not for it; if this is that "
            f"machine: collector-cli token create --host {known.hostname}; if it is a copy of that machine: "
            "fleet-agent enroll --new-identity",
        )
    if known is not None and known.host != record.host:
        raise EnrolmentRefused(
            "known_host",
            "ALREADY_EXISTS",
            f"this token is for {record.hostname}, but host {request.host_id} is known as {known.hostname}; to join "
            f"the two: collector-cli rebind {record.hostname} {known.hostname}; if this machine is a copy of "
            f"{known.hostname}: fleet-agent enroll --new-identity",
        )
    if record.is_alive(now) and _is_another_machine(record, request):
        raise EnrolmentRefused(
            "alive_elsewhere",
            "ALREADY_EXISTS",
            f"{record.hostname} is alive on another machine at {record.address}; stop the agent there, and try again "
            f"{record.ttl / 1000:g} s later",
        )
    return record


def _check_name(token: StoredToken, record: KnownRecord | None, hostname: str) -> None:
    names = [token.hostname]
    if record is not None:
        names += [record.hostname, record.own_name]
    if token.hostname and hostname.casefold() not in [name.casefold() for name in names if name]:
        raise EnrolmentRefused(
            "other_machine",
            "PERMISSION_DENIED",
            f"this token is for {token.hostname}, but this machine is called {hostname}; if that is right: "
            f"collector-cli token create --host {hostname}",
        )


def _is_another_machine(record: KnownRecord, request: EnrolRequest) -> bool:
    return any(
        known and known != now
        for known, now in (
            (record.machine_id, request.machine_id),
            (record.hardware_id, request.hardware_id),
        )
    )


def _add(tx: Transaction, applicant: Applicant, now: int) -> int:
    request, address = applicant
    record = HostRecord(
        request.host_id,
        request.hostname,
        request.machine_id,
        boot_id="",
        agent_version=request.agent_version,
        address=address,
        interval=_INTERVAL,
        ttl=_TTL,
        hardware_id=request.hardware_id,
    )
    added = add_hosts(tx, [record], now)
    known = record_of(tx, request.host_id)
    if added != 1 or known is None:
        raise StoreConflict("somebody else enrolled the same host")
    return known.host


def _accept(tx: Transaction, host: int, issued: Issued) -> None:
    row = CertificateRow(issued.fingerprint, host, issued.issuer, issued.issued_at, issued.not_after)
    add_certificate(tx, row)


def _short(fingerprint: bytes) -> str:
    return f"sha256:{fingerprint.hex()[:16]}"
