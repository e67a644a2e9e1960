"""Why a host could not be asked over SSH, told from what went wrong, and when."""

from __future__ import annotations

import enum
import errno
import os

import asyncssh

from collector.core.diagnosis import MAX_EVIDENCE, Diagnosis, DiagnosisKind
from collector.core.render import escape


class Stage(enum.StrEnum):
    """How far a connection has got."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    HANDSHAKE = "handshake"
    LOGIN = "login"
    RUN = "run"


class ProbeFailure(Exception):
    """A host could not be asked; the diagnosis says why, as far as this one connection can tell.

    `text` may have been said by the host, so it is data: one line, escaped, and not longer than anyone reads.
    `address` is where it was tried, if that is known.
    """

    def __init__(self, kind: DiagnosisKind, text: str, address: str = ""):
        evidence = escape(text[:MAX_EVIDENCE])[:MAX_EVIDENCE]
        super().__init__(evidence)
        self.diagnosis = Diagnosis(kind, evidence)
        self.address = address


_NO_NETWORK = (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)


def of_connecting(error: OSError, place: str, address: str = "") -> ProbeFailure:
    """No TCP connection could be made to `place`, which is at `address`."""
    if isinstance(error, TimeoutError) or error.errno in (
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
    ):
        return ProbeFailure(DiagnosisKind.HOST_DEAD, f"{place}: {_words(error) or 'no answer'}", address)
    if error.errno in _NO_NETWORK:
        return ProbeFailure(DiagnosisKind.NETWORK_UNREACHABLE, f"{place}: {_words(error)}")
    return ProbeFailure(DiagnosisKind.SSH_CLOSED, f"{place}: {_words(error) or error}")


def of_tunnel(error: asyncssh.ChannelOpenError, place: str, hop: str) -> ProbeFailure:
    """The jump host could not connect to `place`. OpenSSH passes the system's own words on."""
    text = f"{place}: {hop} says: {error.reason}"
    said = error.reason.lower()
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return ProbeFailure(
            DiagnosisKind.NOT_PROBED, f"{text}; does {hop} allow forwarding (AllowTcpForwarding)?"
        )
    if "refused" in said or f"errno {errno.ECONNREFUSED}" in said:
        return ProbeFailure(DiagnosisKind.SSH_CLOSED, text)
    if "network is" in said:
        return ProbeFailure(DiagnosisKind.NETWORK_UNREACHABLE, text)
    if "name" in said or "resol" in said:
        return ProbeFailure(DiagnosisKind.NOT_PROBED, text)
    return ProbeFailure(DiagnosisKind.HOST_DEAD, text)


def of_handshake(error: Exception, place: str, stage: Stage, seconds: float) -> ProbeFailure:
    """TCP answers, and no SSH connection came of it. Host keys are told by whoever compared them."""
    if isinstance(error, TimeoutError):
        said = "says nothing" if stage is Stage.HANDSHAKE else "begins to speak SSH and stops"
        text = f"{place}: TCP answers and SSH {said} within {seconds:.1f} s"
        return ProbeFailure(DiagnosisKind.FROZEN, text)
    if isinstance(error, asyncssh.PermissionDenied):
        return ProbeFailure(DiagnosisKind.KEY_REFUSED, f"{place}: {error.reason}")
    if isinstance(error, asyncssh.KeyExchangeFailed):
        text = f"{place}: {error.reason}; an old device may need KexAlgorithms, Ciphers or HostKeyAlgorithms"
        return ProbeFailure(DiagnosisKind.PROBE_FAILED, text)
    if isinstance(error, (asyncssh.DisconnectError, asyncssh.ProtocolError)):
        return ProbeFailure(DiagnosisKind.SSH_CLOSED, f"{place}: {error.reason}")
    if isinstance(error, OSError):
        return ProbeFailure(DiagnosisKind.SSH_CLOSED, f"{place}: {_words(error) or error}")
    return ProbeFailure(DiagnosisKind.PROBE_FAILED, f"{place}: {error}")


def _words(error: OSError) -> str:
    """The system's own words; asyncio has others, which say less."""
    return os.strerror(error.errno) if error.errno else ""
