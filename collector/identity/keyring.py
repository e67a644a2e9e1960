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
    general_name,
    names_of,
    not_after_of,
    not_before_of,
)
from collector.identity.key_files import Folder, KeyringError, locked, prepare_folder, stamp
from collector.identity.material import KeyPlaces, Material

_PERMANENCE = 2 / 3  # the share of its life after which our own certificate is made anew
_NAMES_PAUSE = 60_000  # milliseconds between two that are made for their names' sake: names may come and go

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
        self._said_of: object = None
        self._named_at: int | None = None
        self.places = KeyPlaces(identity)

    @property
    def current(self) -> Material:
        """What is in use, as of the last look."""
        assert self._current is not None, "load() or open() comes first"
        return self._current

    def load(self) -> Material:
        """Read what is there. Raises KeyringError."""
        return self._load(self.places)

    def open(self) -> bool:
        """Make what is missing, then read; whether a CA was made. Raises KeyringError."""
        made = False
        if self.places.has_own_ca or self.places.has_own_certificate:
            prepare_folder(self.places.folder)
            with locked(self.places.folder) as folder:
                if self.places.has_own_ca and not self.places.bundle_path.exists():
                    self._create_ca(folder)
                    made = True
                if self.places.has_own_certificate:
                    self._renew_server(folder)
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
                if before is not None:
                    self._require_common_ca(before, found)
            except Exception as error:  # noqa: BLE001 - what others put there must not end the service
                self._is_broken = True
                self._complain(error, seen)
                return False
            self._is_broken = False
            self._said.clear()
            if before is not None and _essence(before) == _essence(found):
                return False
            self._current = found
            return True

    def maintain(self) -> bool:
        """Do what is due to the files, then look at them as `refresh` does.

        Due may be another certificate for the server, and the end of a change of the CA that was cut short.
        """
        seen = stamp(self.places.all)
        try:
            if self.places.has_own_certificate and (
                self._is_broken or seen != self._stamp or self._is_server_due(self.current)
            ):
                with locked(self.places.folder) as folder:
                    self._renew_server(folder)
            if self.current.has_spare_keys:
                with locked(self.places.folder) as folder:
                    self._drop_spare_keys(folder)
        except Exception as error:  # noqa: BLE001 - as in refresh
            self._complain(error, seen)
        return self.refresh()

    def rotate(self) -> Material:
        """Make a new CA, which signs from now on; the older stay trusted. Raises KeyringError."""
        self._require_own_ca()
        with locked(self.places.folder) as folder:
            material, authority = self._load_to_sign(folder)
            if material.is_changing:
                raise KeyringError("the CA is being changed already; end that first: collector-cli ca finish")
            new = Authority.create(self._now())
            # The keys first: all of them are of use with the old bundle and with the new one.
            folder.write(self.places.ca_key_path.name, new.key_pem + authority.key_pem)
            folder.write(self.places.bundle_path.name, new.certificate_pem + material.bundle)
        return self.load()

    def finish(self) -> Material:
        """Have the server's certificate signed by the CA that signs; trust no other any more.

        Raises KeyringError.
        """
        self._require_own_ca()
        with locked(self.places.folder) as folder:
            material, authority = self._load_to_sign(folder)
            vouched = material.server_issuer_fingerprint == authority.fingerprint
            if self.places.has_own_certificate and not vouched:
                self._create_server(authority, folder)
            elif not vouched:
                raise KeyringError(
                    f"{self.places.certificate_path} is of a CA that would not be trusted any more;"
                    " replace it by one of the new CA first"
                )
            folder.write(self.places.bundle_path.name, authority.certificate_pem)
            folder.write(self.places.ca_key_path.name, authority.key_pem)
        return self.load()

    def _load(self, places: KeyPlaces) -> Material:
        if places.has_own_ca and not places.bundle_path.exists():
            raise KeyringError(f"there is no CA in {places.folder}; make one: collector-cli ca init")
        with self._lock:
            self._stamp = stamp(places.all)
            self._current = places.read(self._now())
        return self._current

    def _load_to_sign(self, folder: Folder) -> tuple[Material, Authority]:
        material = self._load(self.places.inside(folder))
        if material.authority is None:
            raise KeyringError(
                f"{self.places.ca_key_path} is not here; change the CA on the machine that has it"
            )
        return material, material.authority

    def _complain(self, error: Exception, seen: object) -> None:
        """Once for each way in which the files, of which `seen` is the stamp, cannot be used."""
        if seen != self._said_of:
            self._said_of = seen
            self._said.clear()
        is_foreseen = isinstance(error, KeyringError)
        text = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
        if text not in self._said:
            self._said.add(text)
            log.error(
                "the certificates stay as they were", error=text, exc_info=None if is_foreseen else error
            )

    def _require_common_ca(self, before: Material, found: Material) -> None:
        """A host that is connected knows those of `before` only. Raises KeyringError."""
        known = [(ca.subject, ca.public_key()) for ca in before.trusted]
        if not any((ca.subject, ca.public_key()) in known for ca in found.trusted):
            raise KeyringError(
                f"{self.places.bundle_path} has no CA in common with the one in use, and every host would be locked"
                " out; to change the CA: collector-cli ca rotate, later ca finish (a site's own: the new certificate"
                " first, the old one after it until all hosts have renewed); to insist, restart the collector"
            )

    def _require_own_ca(self) -> None:
        if not self.places.has_own_ca:
            raise KeyringError(
                f"the CA is the site's own: put its new certificate first into {self.places.bundle_path}, leave the old"
                f" one after it, and put the new key into {self.places.ca_key_path}"
            )

    def _create_ca(self, folder: Folder) -> None:
        key = None
        if self.places.ca_key_path.exists():  # a first start that was cut short, or a lost ca.pem
            key = self.places.inside(folder).read_ca_keys()[0]
        authority = Authority.create(self._now(), key=key)
        folder.write(self.places.ca_key_path.name, authority.key_pem)
        folder.write(self.places.bundle_path.name, authority.certificate_pem)

    def _drop_spare_keys(self, folder: Folder) -> None:
        material = self.places.inside(folder).read(self._now())
        if material.has_spare_keys and material.authority is not None:
            folder.write(self.places.ca_key_path.name, material.authority.key_pem)

    def _renew_server(self, folder: Folder) -> None:
        """Make the server's certificate if there is none that is good; the directory is locked."""
        places = self.places.inside(folder)
        try:
            if not self._is_server_due(places.read(self._now())):
                return
            self._named_at = self._now()
        except KeyringError:
            if places.certificate_path.exists():
                places.read_key()  # closed to others, if nothing else
        trusted = places.read_trusted()
        authorities = places.read_authorities(trusted)
        if not authorities:
            raise KeyringError(
                f"{places.ca_key_path}: no key of the first certificate in {places.bundle_path}"
            )
        self._create_server(self._vouching_authority(authorities), folder)

    def _vouching_authority(self, authorities: Sequence[Authority]) -> Authority:
        """The oldest that still lives: agents that were away may know no other."""
        alive = [one for one in authorities if one.not_after > self._now()]
        return (alive or authorities)[-1]

    def _create_server(self, authority: Authority, folder: Folder) -> None:
        self.places.require_alive(authority.certificate, self._now())
        key, chain = authority.sign_server(self._names(), self._now(), self._lifetime)
        folder.write(self.places.certificate_path.name, key + chain)

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
        if self._named_at is not None and 0 <= now - self._named_at < _NAMES_PAUSE:
            return False
        # As a certificate says them: what it cannot hold must not be missed in it.
        wanted = {str(general_name(name).value) for name in self._names()}
        return not wanted <= set(names_of(certificate))


def _essence(material: Material) -> tuple[object, ...]:
    authorities = (material.authority, *material.older)
    return (
        material.trust_id,
        material.server_chain,
        material.has_spare_keys,
        [authority.fingerprint for authority in authorities if authority is not None],
    )
