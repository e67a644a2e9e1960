"""Simulated hosts that speak TLS: enrolled with a real token at the real port, renewed as real ones are.

All by the agent's own functions. What differs is that one machine plays many hosts: what tells them apart is
made up, and keys are made in this process, because a process for each would be a load of its own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from agent.certificate import pem_blocks
from agent.credential_files import CredentialFiles, CredentialsError
from agent.credentials import Credentials
from agent.key_process import NewKey, parse
from agent.keys import make_key_and_request
from agent.pinning import EnrolmentPort, parse_fingerprint
from agent.target import parse_endpoint
from fleetpulse import __version__
from fleetpulse.enrolment import EnrolRequest
from fleetpulse.model import HostId


def add_enrolment_options(parser: argparse.ArgumentParser) -> None:
    """How to enrol; without any of these, in plaintext."""
    parser.add_argument("--enroll", metavar="HOST:PORT", help="enrol here, and speak TLS")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="good for as many as there are hosts")
    parser.add_argument("--ca-fingerprint", metavar="SHA256", help="of the collector's CA")
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="where the hosts' certificates are kept"
    )


class Enroller:
    """Makes hosts, each with a folder of its own under `state_dir`. Raises what `agent.pinning` raises."""

    def __init__(self, endpoint: str, token: str, ca_fingerprint: str, state_dir: Path):
        self._port = EnrolmentPort(parse_endpoint(endpoint))
        self._token = token
        self._fingerprint = parse_fingerprint(ca_fingerprint)
        self._state_dir = state_dir
        self._ca = b""

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Enroller | None:
        """What `add_enrolment_options` took; None: plaintext."""
        if not options.enroll:
            return None
        token = options.token_file.read_text(encoding="ascii").strip()
        return cls(options.enroll, token, options.ca_fingerprint, options.state_dir)

    def credentials(self, host_id: HostId, hostname: str, machine_id: str = "") -> Credentials:
        """The credentials of this host, which enrols first unless it has before."""
        files = CredentialFiles(self._state_dir / host_id)
        files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            files.load(host_id)
        except CredentialsError:
            self._enroll(files, host_id, hostname, machine_id)
        return Credentials(files, host_id, make_key=_make_key)

    def _enroll(self, files: CredentialFiles, host_id: HostId, hostname: str, machine_id: str) -> None:
        if not self._ca:
            self._ca = self._port.pinned_ca(self._fingerprint, time.time())
        key, csr = make_key_and_request()
        request = EnrolRequest(
            token=self._token,
            host_id=host_id,
            hostname=hostname,
            machine_id=machine_id,
            hardware_id="",
            agent_version=__version__,
            csr=pem_blocks(csr, "CERTIFICATE REQUEST")[0],
        )
        enrolled = self._port.enroll(self._ca, request)
        files.store_bundle(enrolled.ca_bundle)
        files.store_pair(key, enrolled.chain, host_id)


async def _make_key() -> NewKey:
    made = make_key_and_request()
    return parse(made.key + made.request)
