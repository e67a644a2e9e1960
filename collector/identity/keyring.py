"""The collector's certificates and keys: made, checked, replaced.

In `identity.dir`, unless the configuration says to take the site's own:

    ca.pem      the CAs that are trusted; the first is the one that signs
    ca.key      its private key; while CAs are being changed, also those of the others
    server.pem  the collector's own key and certificate

Each file is replaced as a whole, and each change takes steps of which every one leaves files that
fit together: whoever reads in the middle, or starts after a crash, finds nothing broken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from collector.config import Identity
from collector.identity.authority import (
    Authority,
    AuthorityError,
    names_of,
    not_after_of,
    not_before_of,
    parse_keys,
)
from collector.identity.key_files import KeyringError, locked, prepare_folder, read_key, stamp, write
from collector.identity.material import KeyPlaces, Material

_PERMANENCE = 2 / 3  # the share of its life after which our own certificate is made anew

log = structlog.get_logger()


class Keyring:
    """The collector's certificates, kept up to date. Safe for threads.

    `names` says which names the server's certificate must have. `now` is the time by which certificates
    are judged, in milliseconds: the system's, as whoever checks them uses that.
    """

    def __init__(
        self,
        identity: Identity,
        names: Callable[[], Sequence[str]],
        now: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ):
        self._lifetime = identity.server_lifetime
        self._names = names
        self._now = now
        self._lock = threading.Lock()
        self._current: Material | None = None
        self._stamp: object = None
        self._is_broken = False
        self._said: set[str] = set()
        self.places = KeyPlaces(identity)

    @property
    def current(self) -> Material:
        """What is in use, as of the last look."""
        assert self._current is not None, "load() or open() comes first"
        return self._current

    def load(self) -> Material:
        """Read what is there. Raises KeyringError."""
        if self.places.has_own_ca and not self.places.bundle_path.exists():
            raise KeyringError(f"there is no CA in {self.places.folder}; make one: collector-cli ca init")
        with self._lock:
            self._stamp = stamp(self.places.all)
            self._current = self.places.read(self._now())
        return self._current

    def open(self) -> bool:
        """Make what is missing, then read; whether a CA was made. Raises KeyringError."""
        made = False
        if self.places.has_own_ca or self.places.has_own_certificate:
            prepare_folder(self.places.folder)
            with locked(self.places.folder):
                if self.places.has_own_ca and not self.places.bundle_path.exists():
                    self._create_ca()
                    made = True
                if self.places.has_own_certificate:
                    self._renew_server()
        self.load()
        return made

    def refresh(self) -> bool:
        """Look whether the files were replaced; whether something else is in use now.

        What cannot be used is logged, once, and changes nothing.
        """
        with self._lock:
            seen = stamp(self.places.all)
            if seen == self._stamp and not self._is_broken:
                return False
            self._stamp = seen
            before = self._current
            try:
                found = self.places.read(self._now())
            except KeyringError as error:
                self._is_broken = True
                self._complain(error)
                return False
            self._is_broken = False
            self._said.clear()
            if before is not None and _essence(before) == _essence(found):
                return False
            self._current = found
            return True

    def maintain(self) -> bool:
        """Renew the server's certificate if it is time; then look at the files as `refresh` does."""
        if self.places.has_own_certificate and (
            self._is_broken or stamp(self.places.all) != self._stamp or self._is_server_due(self.current)
        ):
            try:
                with locked(self.places.folder):
                    self._renew_server()
            except KeyringError as error:
                self._complain(error)
        return self.refresh()

    def rotate(self) -> Material:
        """Make a new CA, which signs from now on; the older stay trusted. Raises KeyringError."""
        self._require_own_ca()
        with locked(self.places.folder):
            material = self.load()
            if material.authority is None:
                raise KeyringError(
                    f"{self.places.ca_key_path} is not here; change the CA on the machine that has it"
                )
            if material.is_changing:
                raise KeyringError("the CA is being changed already; end that first: collector-cli ca finish")
            new = Authority.create(self._now())
            # The keys first: all of them are of use with the old bundle and with the new one.
            write(self.places.ca_key_path, new.key_pem + material.authority.key_pem)
            write(self.places.bundle_path, new.certificate_pem + material.bundle)
            return self.load()

    def finish(self) -> Material:
        """Have the server's certificate signed by the CA that signs; trust no other any more.

        Raises KeyringError.
        """
        self._require_own_ca()
        with locked(self.places.folder):
            material = self.load()
            if material.authority is None:
                raise KeyringError(
                    f"{self.places.ca_key_path} is not here; change the CA on the machine that has it"
                )
            vouched = material.server_issuer_fingerprint == material.authority.fingerprint
            if self.places.has_own_certificate and not vouched:
                self._create_server(material.authority)
            elif not vouched:
                raise KeyringError(
                    f"{self.places.certificate_path} is of a CA that would not be trusted any more;"
                    " replace it by one of the new CA first"
                )
            write(self.places.bundle_path, material.authority.certificate_pem)
            write(self.places.ca_key_path, material.authority.key_pem)
            return self.load()

    def _complain(self, error: KeyringError) -> None:
        if str(error) not in self._said:
            self._said.add(str(error))
            log.error("the certificates stay as they were", error=str(error))

    def _require_own_ca(self) -> None:
        if not self.places.has_own_ca:
            raise KeyringError(
                f"the CA is the site's own: put its new certificate first into {self.places.bundle_path}, leave the old"
                f" one after it, and put the new key into {self.places.ca_key_path}"
            )

    def _create_ca(self) -> None:
        key = None
        if self.places.ca_key_path.exists():  # a first start that was cut short, or a lost ca.pem
            try:
                key = parse_keys(self.places.read_ca_key())[0]
            except AuthorityError as error:
                raise KeyringError(f"{self.places.ca_key_path}: {error}") from None
        authority = Authority.create(self._now(), key=key)
        write(self.places.ca_key_path, authority.key_pem)
        write(self.places.bundle_path, authority.certificate_pem)

    def _renew_server(self) -> None:
        """Make the server's certificate if there is none that is good; the directory is locked."""
        try:
            if not self._is_server_due(self.places.read(self._now())):
                return
        except KeyringError:
            if self.places.certificate_path.exists():
                read_key(
                    self.places.certificate_path, "the collector's key"
                )  # closed to others, if nothing else
        trusted = self.places.read_trusted()
        authorities = self.places.read_authorities(trusted)
        if not authorities:
            raise KeyringError(
                f"{self.places.ca_key_path}: no key of the first certificate in {self.places.bundle_path}"
            )
        self._create_server(self._vouching_authority(authorities))

    def _vouching_authority(self, authorities: Sequence[Authority]) -> Authority:
        """The oldest that still lives: agents that were away may know no other."""
        alive = [one for one in authorities if one.not_after > self._now()]
        return (alive or authorities)[-1]

    def _create_server(self, authority: Authority) -> None:
        self.places.require_alive(authority.certificate, self._now())
        key, chain = authority.sign_server(self._names(), self._now(), self._lifetime)
        write(self.places.certificate_path, key + chain)

    def _is_server_due(self, material: Material) -> bool:
        certificate = material.server_certificate
        authorities = [one for one in (material.authority, *material.older) if one is not None]
        if not authorities:
            return False
        start, end, now = not_before_of(certificate), not_after_of(certificate), self._now()
        signer = self._vouching_authority(authorities)
        possible = min(now + int(self._lifetime * 1000), signer.not_after)
        if now < start:  # somebody has set the clock back
            return True
        if now >= start + (end - start) * _PERMANENCE and possible >= end + 1000:
            return True
        return not set(self._names()) <= set(names_of(certificate))


def _essence(material: Material) -> tuple[object, ...]:
    authorities = (material.authority, *material.older)
    return (
        material.trust_id,
        material.server_chain,
        [authority.fingerprint for authority in authorities if authority is not None],
    )
