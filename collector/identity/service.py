"""What the running collector does about certificates: both ports' TLS, enrolment, and looking after the files."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import grpc
import structlog
from grpc import aio

from collector.config import Config
from collector.identity.attempts import Attempts
from collector.identity.authority import fingerprint_of
from collector.identity.credentials import enrolment_port_credentials, report_port_credentials
from collector.identity.desk import Desk
from collector.identity.enrolment_server import EnrolmentServicer, create_enrolment_server
from collector.identity.handshakes import Handshakes
from collector.identity.keyring import Keyring
from collector.identity.material import Material
from collector.identity.server_names import server_names
from collector.store.store import Store
from fleetpulse.enrolment import ENROLL_PORT_OFFSET

UNAUTHENTICATED = "unauthenticated"
"""The count of connections that showed no certificate that is accepted."""

_LOOK = 1.0  # seconds between two looks at the files
_TELL = 60.0  # seconds between two lines about connections without a certificate
_LAST_CALLS = 1.0  # seconds that enrolments under way may take at the end
_LAST_WRITE = 2.0

log = structlog.get_logger()


class IdentityService:
    """Certificates in use. `desk` gives out new ones, `handshakes` intercepts the calls to the report port."""

    def __init__(self, config: Config, store: Store, now: Callable[[], int]):
        """Makes a CA and a certificate if there are none. Raises KeyringError."""
        self._config = config
        self._keyring = create_keyring(config)
        is_new = self._keyring.open()
        self.desk = Desk(store, self._keyring, now, config.identity.host_lifetime)
        self.handshakes = Handshakes()
        self._server: aio.Server | None = None
        self._stopping = threading.Event()
        log.info(
            "made a CA" if is_new else "the CA",
            fingerprint=self._keyring.current.server_issuer_fingerprint.hex(),
            file=str(self._keyring.places.bundle_path),
            can_sign=self._keyring.current.authority is not None,
        )

    @property
    def report_port_credentials(self) -> grpc.ServerCredentials:
        """For the port to which hosts report."""
        return report_port_credentials(self._keyring, self.handshakes)

    def bind_enrolment(self, counts: Counter[str]) -> str:
        """Take the port for enrolment; its address, empty if there is to be none. Raises RuntimeError."""
        listen = enroll_address(self._config)
        if not listen:
            return ""
        attempts = Attempts(self._config.limits.refused_enrolments_per_minute)
        self._server = create_enrolment_server(EnrolmentServicer(self.desk, attempts, counts))
        port = self._server.add_secure_port(listen, enrolment_port_credentials(self._keyring))
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Let machines enrol."""
        if self._server is not None:
            await self._server.start()

    async def watch(self, counts: Counter[str], on_change: Callable[[], None]) -> NoReturn:
        """Keep the certificates up to date, and count who shows none; for ever.

        `on_change` is called when others are in use.
        """
        # Not the loop's executor, which the end of the program waits for: finding names may take long.
        threading.Thread(target=self._look_after_files, name="certificates", daemon=True).start()
        known = self._keyring.current
        untold, told_at = 0, -_TELL
        while True:
            await asyncio.sleep(_LOOK)
            if known is not self._keyring.current:
                known = self._keyring.current
                _tell_change(known)
                on_change()
            failed = self.handshakes.take_failed()
            counts[UNAUTHENTICATED] += failed
            untold += failed
            if untold and time.monotonic() - told_at >= _TELL:
                log.warning("connections without an accepted certificate", new=untold)
                untold, told_at = 0, time.monotonic()

    async def stop_enrolment(self) -> None:
        """Let nobody enrol any more."""
        if self._server is not None:
            await self._server.stop(_LAST_CALLS)

    def close(self, counts: Counter[str]) -> None:
        """Let go of the database, and count for the last time."""
        counts[UNAUTHENTICATED] += self.handshakes.take_failed(at_once=True)
        self._stopping.set()
        self.desk.close(_LAST_WRITE)

    def _look_after_files(self) -> None:
        while not self._stopping.wait(_LOOK):
            self._keyring.maintain()


def create_keyring(config: Config) -> Keyring:
    """The keyring that the configuration describes; nothing is read yet."""
    return Keyring(config.identity, server_names(config.listen, config.identity.names))


def enroll_address(config: Config) -> str:
    """Where machines are to enrol: unless configured, at the port after the one to which they report.

    Empty: nowhere.
    """
    configured = config.identity.enroll_listen
    if configured or config.listen.startswith("unix:"):
        return "" if configured == "off" else configured
    host, _, port = config.listen.rpartition(":")
    return f"{host}:{int(port) + ENROLL_PORT_OFFSET if int(port) else 0}"


def _tell_change(material: Material) -> None:
    log.info(
        "certificates replaced",
        trusted=[fingerprint_of(ca).hex() for ca in material.trusted],
        server_not_after=f"{material.server_certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
    )
