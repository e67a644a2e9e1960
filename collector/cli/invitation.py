"""What a machine needs besides its token: where to enroll, and whose certificate to expect there."""

from __future__ import annotations

import ipaddress
import shlex
import socket
from typing import NamedTuple

from collector.config import Config
from fleetpulse.enrolment import ENROLL_PORT_OFFSET


class Invitation(NamedTuple):
    """`collector` is where hosts report (empty: not known here), `enroll_port` set if it is not the next one.

    `fingerprint` is that of the CA; if it is empty, `problem` says why.
    """

    collector: str
    enroll_port: int
    fingerprint: str
    problem: str

    def command(self, token_file: str, *, again: bool = False) -> str:
        """What to run on the machine; capitals stand for what is not known here.

        `again` is for a machine that may be enrolled already, and would leave it at that.
        """
        words = ["fleet-agent", "enroll", "--collector", self.collector or "HOST:PORT"]
        if self.enroll_port:
            words += ["--enroll-port", str(self.enroll_port)]
        words += ["--token-file", token_file, "--ca-fingerprint", self.fingerprint or "SHA256"]
        if again:
            words.append("--force")
        return shlex.join(words)


def invitation(config: Config) -> Invitation:
    """As far as it can be told on this machine, by this user."""
    host, _, port = config.listen.rpartition(":")
    if config.tls == "off":
        return Invitation("", 0, "", 'tls = "off": nobody can enroll at this collector')
    if config.identity.enroll_listen == "off":
        return Invitation("", 0, "", 'identity.enroll_listen = "off": nobody can enroll at this collector')
    collector = ""
    if not config.listen.startswith("unix:") and int(port):
        collector = f"{_reachable(host)}:{port}"
    fingerprint, problem = _fingerprint(config)
    return Invitation(collector, _enroll_port(config, port), fingerprint, problem)


def _enroll_port(config: Config, port: str) -> int:
    """The port at which to enroll, if it is not the one after the port to which hosts report."""
    configured = config.identity.enroll_listen.rpartition(":")[2]
    if not configured.isdigit() or (port.isdigit() and int(configured) == int(port) + ENROLL_PORT_OFFSET):
        return 0
    return int(configured)


def _reachable(host: str) -> str:
    try:
        anywhere = ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host
    return socket.gethostname() if anywhere else host


def _fingerprint(config: Config) -> tuple[str, str]:
    from collector.identity.key_files import KeyringError
    from collector.identity.service import create_keyring

    try:
        return create_keyring(config).load().server_issuer_fingerprint.hex(), ""
    except KeyringError as error:
        return "", f"{error}; as the collector's user, collector-cli ca show says the fingerprint"
