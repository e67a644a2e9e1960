"""TLS for gRPC servers whose certificates may be replaced while they serve.

gRPC asks for the certificates at every handshake, in a thread of its own. It speaks TLS 1.2 and 1.3
only, with forward secrecy.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from collector.identity.handshakes import Handshakes
from collector.identity.keyring import Keyring
from collector.identity.material import Material

_LOOK = 1.0  # seconds between two looks at the files, however many connect


def report_port_credentials(keyring: Keyring, handshakes: Handshakes) -> grpc.ServerCredentials:
    """Only who has a certificate of a trusted CA gets to speak."""
    return _dynamic(keyring, handshakes.begin, client_certificates=True)


def enrolment_port_credentials(keyring: Keyring) -> grpc.ServerCredentials:
    """The collector shows its certificate, and asks for none."""
    return _dynamic(keyring, lambda: None, client_certificates=False)


def _dynamic(
    keyring: Keyring, on_handshake: Callable[[], None], *, client_certificates: bool
) -> grpc.ServerCredentials:
    given = keyring.current
    looked = time.monotonic()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """None: those of the last time are still good."""
        nonlocal given, looked
        on_handshake()
        if time.monotonic() - looked >= _LOOK:
            looked = time.monotonic()
            keyring.refresh()
        material = keyring.current
        if material is given:
            return None
        given = material
        return _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        fetch,  # type: ignore[arg-type]  # gRPC does take None
        require_client_authentication=client_certificates,
    )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.server_key, material.server_chain)], root_certificates=material.bundle
    )
