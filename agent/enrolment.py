"""`fleet-agent enroll`: this machine becomes a host of the fleet."""

from __future__ import annotations

import contextlib
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.certificate import Validity, certificates, pem_blocks
from agent.config import AgentConfig
from agent.credential_files import CredentialFiles, CredentialsError, Enrolment, Stored, check_bundle
from agent.hardware import this_hardware
from agent.identity import IdentityError, describe, existing_host_id, replace_host_id, stored_host_id
from agent.keys import make_key_and_request
from agent.pinning import EnrolmentFailedError, EnrolmentPort, fingerprint
from agent.refusal import forget_refusal, noted_refusal
from agent.state_dir import StateDirInUseError, claimed
from agent.target import Endpoint
from agent.terminal import escape
from fleetpulse import __version__
from fleetpulse.enrolment import ENROLL_PORT_OFFSET, MAX_TOKEN, EnrolRequest
from fleetpulse.model import HostId

SPOOL_FILES = ("spool.db", "spool.db-wal", "spool.db-shm")


@dataclass(frozen=True, slots=True)
class EnrolmentOptions:
    """What the admin asked for. `collector` is the port to which hosts report."""

    collector: Endpoint
    enroll_port: int
    """0 is the port after the collector's."""
    token_file: str
    """"-" is standard input."""
    ca_fingerprint: bytes
    hostname: str = ""
    new_identity: bool = False
    force: bool = False


class Standing(NamedTuple):
    """A machine that is a host. `is_new`: it just became one."""

    host_id: HostId
    name: str
    collector: str
    validity: Validity
    is_new: bool


def enroll(options: EnrolmentOptions, config: AgentConfig, warn: Callable[[str], None]) -> Standing:
    """Enrol this machine, unless it is already.

    Raises EnrolmentFailedError or EnrolmentRefusedError; CredentialsError, IdentityError or StateDirError
    if the state directory cannot be used. `warn` gets what the admin should know besides.
    """
    files = CredentialFiles(config.state_dir)
    already = None if options.force or options.new_identity else _standing(files, options, warn)
    if already is not None:
        return already
    token = _read_token(options.token_file, warn)
    with _claimed_or_running(config.state_dir) as is_running:
        if is_running and options.new_identity:
            raise EnrolmentFailedError(
                f"an agent runs in {config.state_dir}, and would go on with its old identity; stop it first"
            )
        standing = _enroll(options, config, files, token)
        if is_running:
            warn(
                "the running agent uses the new certificate from its next connection on; if the collector's"
                " address changed, restart it"
            )
        return standing


def _enroll(options: EnrolmentOptions, config: AgentConfig, files: CredentialFiles, token: str) -> Standing:
    id_file = config.state_dir / "host_id"
    # A machine's first one is kept whatever comes of this: the next try is the same machine's.
    host_id = HostId(str(uuid.uuid4())) if options.new_identity else stored_host_id(id_file)
    hostname = options.hostname or _earlier_hostname(files, options)
    identity = describe(host_id, options.hostname or config.hostname or hostname)
    hardware_id = this_hardware()
    key, csr = make_key_and_request()
    port = EnrolmentPort(_enrolment_endpoint(options))
    ca = port.pinned_ca(options.ca_fingerprint, time.time())
    request = EnrolRequest(
        token=token,
        host_id=host_id,
        hostname=identity.hostname,
        machine_id=identity.machine_id,
        hardware_id=hardware_id,
        agent_version=__version__,
        csr=pem_blocks(csr, "CERTIFICATE REQUEST")[0],
    )
    # A token may be good for one try: a full disk shows before it is spent.
    with files.room():
        enrolled = port.enroll(ca, request)
    name = enrolled.name or identity.hostname
    try:
        # An answer that makes no sense changes nothing. What a power cut leaves half done is noticed at the
        # next start, because the certificate names its host.
        check_bundle(enrolled.ca_bundle, "the CA bundle that the collector sent")
        holds = files.store_pair(key, enrolled.chain, host_id)
        if options.new_identity:
            _set_spool_aside(config.state_dir)
            replace_host_id(id_file, host_id)
        files.store_bundle(enrolled.ca_bundle)
        files.store_enrolment(
            Enrolment(
                collector=str(options.collector),
                name=name,
                hardware_id=hardware_id,
                hostname=hostname,
                ca_fingerprint=options.ca_fingerprint.hex(),
            )
        )
    except (CredentialsError, IdentityError, EnrolmentFailedError) as error:
        raise EnrolmentFailedError(
            f"{error}. The collector knows this machine by now, and the token may be used up: then get one made"
            f" for it (collector-cli token create --host {escape(name)}) and enrol again with --force"
        ) from None
    with contextlib.suppress(OSError):
        forget_refusal(config.state_dir)  # which is of an earlier certificate, and counts for no other
    return Standing(host_id, name, str(options.collector), holds, is_new=True)


def _earlier_hostname(files: CredentialFiles, options: EnrolmentOptions) -> str:
    """What the same host was told to call itself when it enrolled before."""
    if options.new_identity:
        return ""
    try:
        return files.enrolment().hostname
    except CredentialsError:
        return ""


def _standing(
    files: CredentialFiles, options: EnrolmentOptions, warn: Callable[[str], None]
) -> Standing | None:
    """What this machine is already, if that is what is asked for."""
    found = existing(files)
    if found is None:
        return None
    host_id, enrolment, stored = found
    known = {fingerprint(der).hex() for der in certificates(stored.ca_bundle)} | {enrolment.ca_fingerprint}
    if (
        enrolment.collector != str(options.collector)
        or options.ca_fingerprint.hex() not in known
        or stored.validity.not_after <= time.time()
    ):
        return None
    refused = noted_refusal(files.folder, stored.chain)
    if refused:
        warn(f"it is enrolled, but the collector does not accept its certificate ({escape(refused)})")
        return None
    hardware_id = this_hardware()
    if enrolment.hardware_id and hardware_id and enrolment.hardware_id != hardware_id:
        warn(
            "it enrolled on other hardware; if this is a copy of another machine, enrol it anew with"
            " --new-identity"
        )
    return Standing(host_id, enrolment.name, enrolment.collector, stored.validity, is_new=False)


def existing(files: CredentialFiles) -> tuple[HostId, Enrolment, Stored] | None:
    """What an earlier enrolment left; None if there was none or it cannot be used. Raises IdentityError."""
    host_id = existing_host_id(files.folder / "host_id")
    if host_id is None:
        return None
    try:
        return host_id, files.enrolment(), files.load(host_id)
    except CredentialsError:
        return None


def _enrolment_endpoint(options: EnrolmentOptions) -> Endpoint:
    port = options.enroll_port or options.collector.port + ENROLL_PORT_OFFSET
    if not 0 < port < 65_536:
        raise EnrolmentFailedError(f"{port} is no port to enrol at; see --enroll-port")
    return Endpoint(options.collector.host, port)


def _read_token(name: str, warn: Callable[[str], None]) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(4 * MAX_TOKEN)
        else:
            with Path(name).open("rb") as file:
                mode = Path(name).stat().st_mode
                if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                    warn(f"{name} is readable by every user of this machine; a token is a secret")
                data = file.read(4 * MAX_TOKEN)
        token = data.decode("ascii").strip()
    except OSError as error:
        raise EnrolmentFailedError(f"cannot read the token from {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EnrolmentFailedError(f"{name} holds no token: it is not text") from None
    if not token or len(token) > MAX_TOKEN or len(token.split()) > 1:
        raise EnrolmentFailedError(
            f"{'standard input' if name == '-' else name} holds no token: expected one word of up to"
            f" {MAX_TOKEN} characters, as collector-cli token create prints it"
        )
    return token


@contextmanager
def _claimed_or_running(state_dir: Path) -> Iterator[bool]:
    """Keeps agents out of the directory meanwhile; or is True because one is in it."""
    try:
        claim = claimed(state_dir)
        claim.__enter__()
    except StateDirInUseError:
        yield True
        return
    try:
        yield False
    finally:
        claim.__exit__(None, None, None)


def _set_spool_aside(state_dir: Path) -> None:
    """What waits there are another host's reports."""
    suffix = f"before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for name in SPOOL_FILES:
        path = state_dir / name
        try:
            path.rename(path.with_name(name.replace("spool.db", f"spool.db.{suffix}")))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise EnrolmentFailedError(f"cannot set {path} aside: {error.strerror}") from None
