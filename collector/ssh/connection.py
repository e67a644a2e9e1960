"""Makes connections over SSH in stages, each with its own deadline, so that it is known how far one got."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import asyncssh
from asyncssh import SSHClientConnection, SSHKey

from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.ssh.failure import ProbeFailure, Stage, of_connecting, of_handshake, of_tunnel
from collector.ssh.keys import AgentKeys, ClientKeys, KeyUnusable
from collector.ssh.lookup import Lookups
from collector.ssh.session import Budget, Connection
from collector.ssh.target import Hop, Resolver, Target
from collector.ssh.trust import Trusted, TrustedKeys, fingerprint_of

_SHARE = 3  # a stage may take at most this part of a poll's time, the run what is left
_ADDRESSES = 2  # of a name that are tried
_HOP_PATIENCE = 5.0  # seconds for which a jump host that could not be reached is not tried again
# Seconds: polls notice when a target is gone, but nothing else tells a jump host from the hosts behind it.
_HOP_KEEPALIVE = 4.0

# The names of our options in asyncssh.
_ARGUMENTS = {
    "Ciphers": "encryption_algs",
    "HostKeyAlgorithms": "server_host_key_algs",
    "KexAlgorithms": "kex_algs",
    "MACs": "mac_algs",
    "PubkeyAcceptedAlgorithms": "signature_algs",
}
# Those that cost least here come first (a poll with ChaCha20, asyncssh's first choice, costs a quarter more), then
# the others that asyncssh has on by default.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
]
_KEY_TYPES: Sequence[Sequence[str]] = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"),
)

_ALL_KEY_TYPES = [name for types in _KEY_TYPES for name in types]

OnStage = Callable[[Stage, str], None]
"""Is told that a stage has been passed, and what was found there."""

asyncssh.set_log_level("CRITICAL")  # what matters of it comes as our own errors


class _NoKeys(list[Any]):
    """No key files. asyncssh takes an empty list for "those in ~/.ssh", and None for no agent either."""

    def __bool__(self) -> bool:
        return True


_NO_KEYS = _NoKeys()


class _NoSuchKey(ProbeFailure):
    """A host speaks SSH, and has no key of the types that it was asked for."""


class _Watch(asyncssh.SSHClient):
    """Sees how far a connection gets, and which key it is offered."""

    def __init__(self) -> None:
        self.connection: SSHClientConnection | None = None
        self.budget: Budget | None = None
        self.offered: SSHKey | None = None
        self.offered_ca: SSHKey | None = None
        """Which vouches for the host's key, if nobody has said that it may."""

    def connection_made(self, conn: SSHClientConnection) -> None:
        self.connection = conn
        self.budget = Budget(conn)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: SSHKey) -> bool:  # noqa: ARG002
        self.offered = key
        return False  # asked only about keys that are not trusted

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: SSHKey) -> bool:  # noqa: ARG002
        self.offered_ca = key
        return False

    @property
    def stage(self) -> Stage:
        """How far it got after TCP: to SSH's own words, or not."""
        spoke = self.connection is not None and self.connection.get_extra_info("server_version")
        return Stage.LOGIN if spoke else Stage.HANDSHAKE

    @property
    def has_shown_key(self) -> bool:
        """Whether the key exchange has come to its end."""
        return self.connection is not None and self.connection.get_server_host_key() is not None

    def abort(self) -> None:
        """End what a cancelled attempt has left behind."""
        if self.connection is not None:
            self.connection.abort()


class Dialer:
    """Makes connections, over jump hosts whose connections are shared and kept. Used in one event loop."""

    def __init__(self, resolver: Resolver, trusted: TrustedKeys):
        self.trusted = trusted
        self._resolver = resolver
        self._keys = ClientKeys()
        self._agents = AgentKeys()
        self._hops: dict[tuple[object, ...], asyncio.Task[SSHClientConnection]] = {}
        self._hop_failures: dict[tuple[object, ...], tuple[float, Diagnosis]] = {}
        self._lookups = Lookups()

    async def dial(self, target: Target, on_stage: OnStage = lambda _stage, _text: None) -> Connection:
        """A connection that is logged in. Raises ProbeFailure."""
        names = (target.key_alias, target.address)
        hop = Hop(target.user, target.address, target.port)
        tunnel = await self._tunnel(target, target.jump)
        connection, budget = await self._dial(target, hop, names, tunnel, on_stage)
        return Connection(connection, budget)

    def close(self) -> None:
        """Close the connections to jump hosts."""
        for task in self._hops.values():
            _drop(task)
        self._hops.clear()

    async def fetch_keys(self, target: Target) -> list[SSHKey]:
        """The keys that the host offers, one of each type, none of them verified. Raises ProbeFailure."""
        tunnel = await self._tunnel(target, target.jump)
        hop = Hop(target.user, target.address, target.port)
        found: list[SSHKey] = []
        failure: ProbeFailure | None = None
        for types in _KEY_TYPES:
            try:
                found.append(await self._fetch_key(target, hop, tunnel, types))
            except _NoSuchKey as error:  # it ends the connection
                failure = error
        if not found and failure is not None:
            raise failure
        return found

    async def _fetch_key(
        self, target: Target, hop: Hop, tunnel: SSHClientConnection | None, types: Sequence[str]
    ) -> SSHKey:
        """The key that a host offers first of some types. Raises _NoSuchKey and any other ProbeFailure."""
        watch = _Watch()
        arguments = {
            **_arguments(target),
            "known_hosts": ([], [], []),
            "server_host_key_algs": list(types),
            "client_keys": None,
        }
        failure: ProbeFailure | None = None
        try:
            await self._open(target, hop, tunnel, watch, arguments, lambda _stage, _text: None)
        except (asyncssh.Error, OSError, ValueError) as error:
            failure = of_handshake(error, _place(hop), watch.stage, target.timeout / _SHARE)
        finally:
            watch.abort()
        if watch.offered is not None:
            return watch.offered  # and refused by us, as it was meant to be
        if failure is None or (
            watch.stage is Stage.LOGIN and failure.diagnosis.kind is not DiagnosisKind.FROZEN
        ):
            raise _NoSuchKey(DiagnosisKind.PROBE_FAILED, f"{_place(hop)}: offers no host key of {types}")
        raise failure

    async def _tunnel(self, target: Target, hops: tuple[Hop, ...]) -> SSHClientConnection | None:
        """The connection to the last jump host; None without any."""
        if not hops:
            return None
        key = (hops, target.user, target.keys)
        task = self._hops.get(key)
        if task is not None and task.done() and not _is_usable(task):
            task = None
        if task is None:
            failed_at, diagnosis = self._hop_failures.get(key, (0.0, None))
            if diagnosis is not None and time.monotonic() - failed_at < _HOP_PATIENCE:
                raise ProbeFailure(*diagnosis)
            self._hops[key] = task = asyncio.create_task(self._dial_hop(target, hops))
            task.add_done_callback(_is_usable)  # or asyncio complains of a failure that nobody waited for
        try:
            return await asyncio.shield(task)
        except ProbeFailure as error:
            self._hop_failures[key] = time.monotonic(), error.diagnosis
            raise ProbeFailure(*error.diagnosis) from None  # each who waits has one of its own

    async def _dial_hop(self, target: Target, hops: tuple[Hop, ...]) -> SSHClientConnection:
        hop = self._resolver.hop(hops[-1], target.user)
        tunnel = await self._tunnel(target, hops[:-1])
        # It serves others, too, so it is none of its business what this one needs.
        target = replace(target, options={}, timeout=self._resolver.timeout)
        try:
            names = (hops[-1].host, hop.host)
            connection, budget = await self._dial(
                target, hop, names, tunnel, lambda _stage, _text: None, keepalive_interval=_HOP_KEEPALIVE
            )
        except ProbeFailure as failure:
            kind, text = failure.diagnosis
            unreachable = (DiagnosisKind.HOST_DEAD, DiagnosisKind.NETWORK_UNREACHABLE, DiagnosisKind.FROZEN)
            reached = DiagnosisKind.NETWORK_UNREACHABLE if kind in unreachable else DiagnosisKind.NOT_PROBED
            raise ProbeFailure(reached, f"jump host {hop.host}: {kind.value}: {text}") from None
        budget.lift()
        return connection

    async def _dial(
        self,
        target: Target,
        hop: Hop,
        names: tuple[str, ...],
        tunnel: SSHClientConnection | None,
        on_stage: OnStage,
        **more: object,
    ) -> tuple[SSHClientConnection, Budget]:
        """A connection to `hop`, which may be the target itself or a jump host on the way to it."""
        trusted = await self._trusted_of(names, hop.port)
        watch = _Watch()
        arguments = {
            **_arguments(target),
            "known_hosts": trusted.for_connection,
            "host_key_alias": names[0],
            **await self._credentials(target),
            **more,
        }
        try:
            connection = await self._open(target, hop, tunnel, watch, arguments, on_stage)
        except asyncssh.HostKeyNotVerifiable as error:
            raise _of_host_key(error, watch, trusted, names[0], _place(hop)) from None
        except (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost) as error:
            # A host that has none of the known types of keys any more ends the connection.
            if trusted.keys and watch.stage is Stage.LOGIN and not watch.has_shown_key:
                watch.offered = await self._fetch_key(target, hop, tunnel, _ALL_KEY_TYPES)
                if watch.offered not in trusted.keys:
                    raise _of_host_key(error, watch, trusted, names[0], _place(hop)) from None
            raise of_handshake(error, _place(hop), watch.stage, target.timeout / _SHARE) from None
        except (asyncssh.Error, OSError, ValueError) as error:
            raise of_handshake(error, _place(hop), watch.stage, target.timeout / _SHARE) from None
        except asyncio.CancelledError:
            watch.abort()
            raise
        assert watch.budget is not None
        if connection.is_closed():  # asyncssh has no word for an end that we have made
            text = f"{_place(hop)}: sends more than a login takes" if watch.budget.is_spent else _place(hop)
            raise ProbeFailure(DiagnosisKind.SSH_CLOSED, text)
        key = connection.get_server_host_key()
        on_stage(Stage.LOGIN, fingerprint_of(key) if key else "")
        return connection, watch.budget

    async def _open(
        self,
        target: Target,
        hop: Hop,
        tunnel: SSHClientConnection | None,
        watch: _Watch,
        arguments: dict[str, Any],
        on_stage: OnStage,
    ) -> SSHClientConnection:
        """Connect and shake hands, each for a part of the target's time.

        Raises ProbeFailure for what is wrong before SSH, and whatever asyncssh raises after that.
        """
        patience = target.timeout / _SHARE
        common = {
            **arguments,
            "client_factory": lambda: watch,
            "username": hop.user,
            # Nothing is taken from ~/.ssh, which may be closed to a service.
            "config": None,
            "x509_trusted_certs": [],
            "x509_trusted_cert_paths": [],
        }
        if tunnel is None:
            made = await self._connect(hop, patience, on_stage)
            try:
                return await _within(
                    patience, asyncssh.connect(hop.host, hop.port, sock=made, **common), watch
                )
            except BaseException:
                made.close()
                raise
        try:
            return await _within(
                2 * patience, asyncssh.connect(hop.host, hop.port, tunnel=tunnel, **common), watch
            )
        except asyncssh.ChannelOpenError as error:
            raise of_tunnel(error, _place(hop), target.jump[-1].host) from None
        except TimeoutError as error:
            if watch.connection is None:  # the jump host is still trying
                raise of_connecting(error, _place(hop)) from None
            raise

    async def _connect(self, hop: Hop, patience: float, on_stage: OnStage) -> socket.socket:
        loop = asyncio.get_running_loop()
        failure: ProbeFailure | None = None
        try:
            async with asyncio.timeout(patience):
                found = await self._lookups.look_up(hop.host, hop.port)
        except TimeoutError:
            raise ProbeFailure(DiagnosisKind.NOT_PROBED, f"{hop.host}: name servers do not answer") from None
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            text = f"{hop.host}: its name cannot be resolved ({why})"
            raise ProbeFailure(DiagnosisKind.NOT_PROBED, text) from None
        for family, address in found[:_ADDRESSES]:
            on_stage(Stage.RESOLVE, str(address[0]))
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setblocking(False)
            try:
                async with asyncio.timeout(patience / min(len(found), _ADDRESSES)):
                    await loop.sock_connect(made, address)
            except OSError as error:
                made.close()
                failure = of_connecting(error, f"{address[0]} port {hop.port}", str(address[0]))
            except BaseException:
                made.close()
                raise
            else:
                on_stage(Stage.CONNECT, f"port {hop.port} answers")
                return made
        assert failure is not None
        raise failure

    async def _trusted_of(self, names: tuple[str, ...], port: int) -> Trusted:
        """What is known of a host; of very many lines, looked for in a thread."""
        if self.trusted.is_large:
            return await asyncio.to_thread(self.trusted.of, names, port)
        return self.trusted.of(names, port)

    async def _credentials(self, target: Target) -> dict[str, Any]:
        """What to log in with, as arguments. An agent that is away is missed only where there is no key file."""
        problem = "" if target.agent is None else await self._agents.problem(target.agent)
        if problem and not target.keys:
            raise ProbeFailure(DiagnosisKind.NOT_PROBED, problem)
        try:
            keys = [self._keys.load(path) for path in target.keys]
        except KeyUnusable as error:
            raise ProbeFailure(DiagnosisKind.NOT_PROBED, str(error)) from None
        agent = None if target.agent is None or problem else str(target.agent)
        return {"client_keys": keys or _NO_KEYS, "agent_path": agent}


async def _within(
    seconds: float, connecting: Awaitable[SSHClientConnection], watch: _Watch
) -> SSHClientConnection:
    try:
        async with asyncio.timeout(seconds):
            return await connecting
    except BaseException:
        watch.abort()
        raise


def _arguments(target: Target) -> dict[str, Any]:
    """What every connection on the way to a target has in common."""
    given = {_ARGUMENTS[name]: value for name, value in target.options.items() if name in _ARGUMENTS}
    return {
        "encryption_algs": _CIPHERS,
        **given,
        "preferred_auth": "publickey",
        "login_timeout": 0,  # our own deadlines are shorter
        "x509_trusted_certs": None,
        "compression_algs": None,  # a few bytes may become a gigabyte
        "gss_host": None,
        "agent_forwarding": False,
        "canonicalize_hostname": False,
    }


def _of_host_key(
    error: asyncssh.DisconnectError, watch: _Watch, trusted: Trusted, name: str, place: str
) -> ProbeFailure:
    if watch.offered_ca is not None:
        text = f"{place} shows a certificate of the CA {fingerprint_of(watch.offered_ca)}, which nobody has said "
        text += f"to be trusted for {name}; run: collector-cli ssh trust --ca FILE --for {name}"
        return ProbeFailure(DiagnosisKind.NOT_PROBED, text)
    offered = fingerprint_of(watch.offered) if watch.offered else ""
    if watch.offered is None:  # a revoked key, or a certificate that is not good
        kind = DiagnosisKind.HOST_KEY_CHANGED if "revoked" in error.reason else DiagnosisKind.NOT_PROBED
        return ProbeFailure(kind, f"{place}: {error.reason}")
    if trusted.own:
        known = ", ".join(fingerprint_of(key) for key in trusted.own)
        text = f"{place} shows {offered}, known is {known}; if that is right: collector-cli ssh trust --replace {name}"
        return ProbeFailure(DiagnosisKind.HOST_KEY_CHANGED, text)
    text = f"{place}: nobody has said that its key {offered} is to be trusted; run: collector-cli ssh trust {name}"
    return ProbeFailure(DiagnosisKind.NOT_PROBED, text)


def _place(hop: Hop) -> str:
    return f"{hop.user}@{hop.host} port {hop.port}"


def _is_usable(task: asyncio.Task[SSHClientConnection]) -> bool:
    """Whether a connection came of it, which is still open."""
    return not task.cancelled() and task.exception() is None and not task.result().is_closed()


def _drop(task: asyncio.Task[SSHClientConnection]) -> None:
    if not task.done():
        task.cancel()
    elif _is_usable(task):
        task.result().abort()
