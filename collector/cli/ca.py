"""collector-cli ca: the certificate authority that vouches for hosts and collector."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click

from collector.cli import options
from collector.cli.output import Cell, Line, Page, Table, line, summary
from collector.cli.session import CliError, Session
from collector.cli.times import local, utc
from collector.core.render import count, duration, listed
from collector.identity.authority import fingerprint_of, names_of, not_after_of, not_before_of
from collector.identity.key_files import KeyringError
from collector.identity.keyring import Keyring
from collector.identity.material import Material
from collector.identity.service import create_keyring
from collector.store.certificates import count_by_issuer
from collector.store.collectors import load_listening
from collector.store.errors import StoreError
from collector.store.reading import load_certified_by
from fleetpulse.model import State

_LOOKED = 3.0  # seconds within which a running collector has surely looked at the files


@click.group("ca", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Make, show or change the CA that signs certificates."""


@command.command("init")
@click.pass_obj
def init(session: Session) -> int:
    """Make the CA and the collector's certificate, if there are none; say the CA's fingerprint.

    The collector does the same when it starts for the first time. Run it as the collector's user, or
    as root: the files then belong to whom their directory belongs to.

    \b
    Example:
      collector-cli ca init

    Exit codes: 0 they are there, made now or before; 3 they are not, and the message says why.
    """
    with _keyring(session) as keyring:
        made = keyring.open()
    material = keyring.current
    session.show_line(
        line(f"{'made a CA' if made else 'there is a CA already'}: {keyring.places.bundle_path}")
    )
    session.show_line(line(f"its fingerprint: {material.server_issuer_fingerprint.hex()}"))
    return State.OK.value


@command.command("show")
@options.json_option
@click.pass_obj
def show(session: Session, *, as_json: bool) -> int:
    """Show the trusted CAs and the collector's certificate.

    The fingerprint in the first line is what a machine needs to enroll. HOSTS counts the valid
    certificates that each CA has signed.

    \b
    Examples:
      collector-cli ca show
      collector-cli ca show --json | jq -r .fingerprint

    Exit codes: 0 shown; 3 there is nothing to show, and the message says why.
    """
    with _keyring(session) as keyring:
        keyring.load()
    hosts, problem = _count_hosts(session)
    return session.answer(Certificates(keyring, keyring.current, hosts, problem), as_json=as_json)


@command.command("rotate")
@click.pass_obj
def rotate(session: Session) -> int:
    """Begin to change the CA: make a new one, which signs from now on. The old one stays trusted.

    The running collector takes it up within seconds. It tells its hosts to trust both CAs and to get a
    certificate of the new one; hosts that are away do so when they come back. New machines still need
    the old CA's fingerprint, until `collector-cli ca finish`.

    \b
    Example:
      collector-cli ca rotate

    Exit codes: 0 the change has begun; 3 it has not, and the message says why.
    """
    with _keyring(session) as keyring:
        material = keyring.rotate()
    new, *old = (fingerprint_of(ca).hex() for ca in material.trusted)
    session.show_line(line(f"certificates are signed by the new CA {new} from now on"))
    session.show_line(line(f"the old CA stays trusted, and vouches for the collector: {', '.join(old)}"))
    session.show_line(line("when collector-cli ca show counts no more hosts of it: collector-cli ca finish"))
    return State.OK.value


@command.command("finish")
@click.option("--force", is_flag=True, help="Even if hosts with certificates of an old CA are left behind.")
@click.pass_obj
def finish(session: Session, *, force: bool) -> int:
    """End the change of the CA: trust only the one that signs.

    Refused as long as a host has no valid certificate but one of an old CA: it would not get in any more, and
    would have to be enrolled again.

    \b
    Examples:
      collector-cli ca finish
      collector-cli ca finish --force

    Exit codes: 0 one CA is trusted; 1 one is, and hosts were left behind all the same, because they got a
    certificate of the old CA at the last moment; 3 more are, and the message says why.
    """
    with _keyring(session) as keyring:
        material = keyring.load()
        old = [fingerprint_of(ca) for ca in material.trusted[1:]]
        if old:
            _let_collectors_look(keyring)
        if old and not force:
            _require_nobody_left(session, old)
        material = keyring.finish()
    fingerprint = material.server_issuer_fingerprint.hex()
    session.show_line(line(f"only this CA is trusted now: {fingerprint}"))
    session.show_line(line("new machines need this fingerprint to enroll"))
    return State.OK.value if force else _tell_latecomers(session, old)


@dataclass(frozen=True)
class Certificates:
    """What `show` shows. `hosts` counts valid certificates by CA; None: the database could not be read."""

    keyring: Keyring
    material: Material
    hosts: dict[bytes, int] | None
    problem: str

    @property
    def state(self) -> State:
        """Judging is the doctor's business."""
        return State.OK

    @property
    def summary(self) -> str:
        """What there is, in one line."""
        return f"the CA's fingerprint is {self.material.server_issuer_fingerprint.hex()}"

    def page(self, rows: int | None) -> Page:
        """The CAs, and the collector's certificate below them."""
        material = self.material
        table = Table(
            ("CA", "VALID UNTIL", "SIGNS", "HOSTS", "FINGERPRINT"),
            [
                (
                    Cell(ca.subject.rfc4514_string(), "strong"),
                    Cell(local(not_after_of(ca))),
                    Cell("yes" if self._signs(fingerprint) else "no"),
                    Cell("-" if self.hosts is None else str(self.hosts.get(fingerprint, 0))),
                    Cell(fingerprint.hex()),
                )
                for ca in material.trusted[:rows]
                for fingerprint in [fingerprint_of(ca)]
            ],
        )
        server = material.server_certificate
        page: list[Line | Table] = [
            summary(self.state, self.summary),
            table,
            line(f"The collector's certificate: {self.keyring.places.certificate_path}"),
            line(f"  valid from {local(not_before_of(server))} until {local(not_after_of(server))}"),
            line(f"  signed by {server.issuer.rfc4514_string()}"),
            line(f"  for {', '.join(names_of(server))}"),
        ]
        if material.is_changing:
            page.append(line("The CA is being changed; to end that: collector-cli ca finish"))
        if self.problem:
            page.append(line(f"Hosts are not counted: {self.problem}"))
        return page

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        server = self.material.server_certificate
        return {
            "state": self.state.name,
            "summary": self.summary,
            "fingerprint": self.material.server_issuer_fingerprint.hex(),
            "changing": self.material.is_changing,
            "authorities": [
                {
                    "subject": ca.subject.rfc4514_string(),
                    "fingerprint": fingerprint_of(ca).hex(),
                    "not_before": utc(not_before_of(ca)),
                    "not_after": utc(not_after_of(ca)),
                    "signs": self._signs(fingerprint_of(ca)),
                    "hosts": None if self.hosts is None else self.hosts.get(fingerprint_of(ca), 0),
                }
                for ca in self.material.trusted
            ],
            "server": {
                "file": str(self.keyring.places.certificate_path),
                "issuer": self.material.server_issuer_fingerprint.hex(),
                "not_before": utc(not_before_of(server)),
                "not_after": utc(not_after_of(server)),
                "names": names_of(server),
            },
        }

    def _signs(self, fingerprint: bytes) -> bool:
        authority = self.material.authority
        return authority is not None and authority.fingerprint == fingerprint


@contextmanager
def _keyring(session: Session) -> Iterator[Keyring]:
    """The keyring; what is wrong with it ends the command with one line."""
    try:
        yield create_keyring(session.loaded.config)
    except KeyringError as error:
        raise CliError(str(error)) from None


def _count_hosts(session: Session) -> tuple[dict[bytes, int] | None, str]:
    try:
        with session.store() as store, store.transaction(write=False) as tx:
            return count_by_issuer(tx, time.time_ns() // 1_000_000), ""
    except StoreError as error:
        return None, str(error)


def _require_nobody_left(session: Session, old: Sequence[bytes]) -> None:
    hosts, problem = _count_hosts(session)
    if hosts is None:
        raise CliError(
            f"whether hosts still need the old CA is not known: {problem}; --force ends the change all the same"
        )
    left = sum(hosts.get(fingerprint, 0) for fingerprint in old)
    if left:
        raise CliError(
            f"{count(left, 'certificate')} of the old CA would not be accepted any more: {_holders(session, old)};"
            " the hosts that are connected renew theirs by themselves, the others when they come back"
            " (collector-cli remove forgets one); --force leaves them behind"
        )


def _holders(session: Session, old: Sequence[bytes]) -> str:
    """Who has these certificates, and when each was heard last."""
    with session.store() as store, store.transaction(write=False) as tx:
        now = load_listening(tx).now
        hosts = load_certified_by(tx, old, time.time_ns() // 1_000_000)
    return listed(
        [
            f"{host.hostname} ({f'heard {duration(now - host.received_at)} ago' if host.received_at else 'never heard'})"
            for host in hosts
        ]
    )


def _let_collectors_look(keyring: Keyring) -> None:
    """One that runs takes up no CAs of which it knows none, so it must have seen both together."""
    age = time.time() - keyring.places.bundle_path.stat().st_mtime
    if 0 <= age < _LOOKED:
        time.sleep(_LOOKED - age)


def _tell_latecomers(session: Session, old: Sequence[bytes]) -> int:
    """Whoever asked for a certificate before the change may have got it after the first count."""
    hosts, _ = _count_hosts(session) if old else ({}, "")
    left = sum((hosts or {}).get(fingerprint, 0) for fingerprint in old)
    if not left:
        return State.OK.value
    session.show_line(
        line(
            f"{count(left, 'certificate')} of the old CA came in between and will not be accepted; enroll those"
            " hosts again (collector-cli hosts --json says which: certificate_issuer)"
        )
    )
    return State.WARNING.value
