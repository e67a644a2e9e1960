"""collector-cli doctor: whether the collector's own house is in order."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import click

from collector.cli import findings, options
from collector.cli.findings import Diagnosis, Finding
from collector.cli.session import Session
from collector.config import Config, Ssh
from collector.store import schema
from collector.store.collectors import (
    CollectorRow,
    Listening,
    load_collectors,
    load_listening,
    save_setting,
)
from collector.store.errors import (
    SchemaMismatch,
    StoreConflict,
    StoreError,
    StoreMisconfigured,
    StoreReadOnly,
)
from collector.store.reading import database_clock
from collector.store.ssh_hosts import load_ssh_hosts
from collector.store.store import Store
from collector.store.url import SqliteUrl, parse_url
from fleetpulse.config import ConfigError
from fleetpulse.model import State

if TYPE_CHECKING:
    import grpc

    from collector.identity.keyring import Keyring
    from collector.identity.material import Material

_HEALTH_TIMEOUT = 3.0  # seconds
_HEALTH_CERTIFICATE = 60  # seconds that the one lives with which the port is asked
_PROBE = "write_probe"  # the setting that is written to see whether writing works


def _now() -> float:
    return time.time() * 1000


def look_at_rules(config: Config) -> Finding:
    """Whether the rules can be read."""
    from collector.rules_file import load_rules

    try:
        rules = load_rules(config.rules)
    except ConfigError as error:
        return Finding("rules", State.CRITICAL, str(error), "a running collector keeps its last good rules")
    return Finding("rules", State.OK, f"{len(rules.rules)} rules, from {config.rules or 'the built-in file'}")


def look_at_connections(config: Config) -> Iterator[Finding]:
    """The certificates, if there are to be any, and the port."""
    if config.tls == "off":
        yield from look_at_port(config.listen, None)
        return
    from collector.identity.key_files import KeyringError
    from collector.identity.service import create_keyring

    keyring = create_keyring(config)
    try:
        yield from look_at_certificates(keyring)
    except KeyringError as error:
        yield Finding("certificate", State.CRITICAL, str(error))
        yield Finding("port", State.UNKNOWN, f"{config.listen} cannot be asked without a certificate")
    else:
        yield from look_at_port(config.listen, keyring.current)


def look_at_certificates(keyring: Keyring) -> Iterator[Finding]:
    """Whether certificates and keys can be used, and how long. Raises KeyringError."""
    from collector.identity.authority import not_after_of, not_before_of

    material, now = keyring.load(), round(_now())
    ca, server = material.trusted[0], material.server_certificate
    yield findings.judge_ca(ca.subject.rfc4514_string(), not_after_of(ca), now)
    yield findings.judge_certificate(
        not_before_of(server), not_after_of(server), now, is_own=keyring.places.has_own_certificate
    )


def look_at_port(listen: str, material: Material | None) -> Iterator[Finding]:
    """Whether the collector answers the standard gRPC health check; over TLS if there are certificates."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from collector.health import COUNTS_METADATA, PROBLEM_METADATA

    with _channel(listen, material) as channel:
        try:
            answer, call = health_pb2_grpc.HealthStub(channel).Check.with_call(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT
            )
        except grpc.RpcError as error:
            code = cast("grpc.Call", error).code()  # what a call raises is both
            if code is grpc.StatusCode.UNIMPLEMENTED:
                text = f"{listen} answers, but is no collector"
            else:
                text = f"{listen} does not answer as a collector ({code.name})"
            yield Finding("port", State.CRITICAL, text, "is fleet-collector running there? See: ss -ltnp")
            return
    told = dict(call.trailing_metadata() or ())
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        yield findings.judge_refusal(listen, told.get(PROBLEM_METADATA, b"").decode(errors="replace"))
    else:
        yield Finding("port", State.OK, f"{listen} answers and serves")
    yield findings.judge_refused(json.loads(told.get(COUNTS_METADATA, b"{}")))


def _channel(listen: str, material: Material | None) -> grpc.Channel:
    """To the collector on this machine. It knows its own certificate as a client's, too."""
    import grpc

    from collector.identity.authority import names_of

    if material is None:
        return grpc.insecure_channel(listen)
    key, chain = material.server_key, material.server_chain
    if material.authority is not None:  # the site's may be a server's only
        key, chain = material.authority.sign_server(("localhost",), round(_now()), _HEALTH_CERTIFICATE)
    host, _, port = listen.rpartition(":")
    address = f"127.0.0.1:{port}" if host == "0.0.0.0" else f"[::1]:{port}" if host == "[::]" else listen  # noqa: S104
    name = next(iter(names_of(material.server_certificate)), "localhost").replace("*", "any")
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(material.bundle, key, chain),
        options=[("grpc.ssl_target_name_override", name)],
    )


def look_at_disk(config: Config) -> Iterator[Finding]:
    """Whether an embedded database has room; nothing for a server's."""
    address = parse_url(config.database)
    if isinstance(address, SqliteUrl):
        usage = shutil.disk_usage(address.path.parent)
        yield findings.judge_disk(str(address.path.parent), usage.free, usage.total)


def look_at_writing(store: Store) -> Finding:
    """Whether a small write can be committed. Raises StoreError when the database is away."""
    began = time.perf_counter()
    try:
        with store.transaction() as tx:
            save_setting(tx, _PROBE, f"{_now():.0f}")
    except (StoreReadOnly, StoreMisconfigured, StoreConflict) as error:
        return Finding(
            "writes", State.CRITICAL, str(error), "nothing is acked until the database takes writes"
        )
    return findings.judge_writing((time.perf_counter() - began) * 1000)


def look_at_database(store: Store, config: Config) -> Iterator[Finding]:
    """Speed, schema, writes, pool, collectors and clocks. Raises StoreError."""
    began = time.perf_counter()
    with store.transaction(write=False) as tx:
        database_clock(tx)
    yield findings.judge_database((time.perf_counter() - began) * 1000)
    stored, known = schema.stored_version(store), schema.known_version()
    try:
        schema.require_known_version(store)
    except SchemaMismatch as error:
        yield findings.judge_schema(stored, known, str(error))
        return
    yield findings.judge_schema(stored, known, "")
    yield look_at_writing(store)
    with store.transaction(write=False) as tx:
        budget = store.dialect.connection_budget(tx.cursor)
        listening = load_listening(tx)
        rows = load_collectors(tx)
        before, database_now, after = _now(), database_clock(tx), _now()
    yield findings.judge_pool(
        config.name, config.pool_size, config.connection_reserve, budget, rows, listening.now
    )
    yield findings.judge_collectors(rows, listening)
    # The question travelled: compare with the middle of when it was asked and when answered.
    yield findings.judge_clock("clock", round((before + after) / 2) - database_now, "the database's clock")
    yield from _collector_clock(listening, rows, database_now)
    yield from _look_at_ssh(store, config)


def _look_at_ssh(store: Store, config: Config) -> Iterator[Finding]:
    with store.transaction(write=False) as tx:
        if config.ssh == Ssh() and not load_ssh_hosts(tx):
            return
    from collector.cli.doctor_ssh import look_at_ssh  # it takes asyncssh

    yield from look_at_ssh(store, config)


def _collector_clock(listening: Listening, rows: list[CollectorRow], database_now: int) -> Iterator[Finding]:
    if rows:
        yield findings.judge_clock(
            "collector clock", listening.now - database_now, "the database's, at the last heartbeat"
        )


def diagnose(session: Session) -> Diagnosis:
    """Look at everything; what fails is a finding, and what depends on it is left out."""
    try:
        loaded = session.loaded
    except ConfigError as error:
        return Diagnosis((Finding("configuration", State.CRITICAL, str(error)),))
    config = loaded.config
    found = [Finding("configuration", State.OK, str(loaded.path or "built-in defaults and environment"))]
    found.append(look_at_rules(config))
    try:
        found += look_at_disk(config)
        store = session.open_store()
        try:
            found.extend(look_at_database(store, config))
        finally:
            store.close()
    except StoreError as error:
        found.append(Finding("database", State.CRITICAL, str(error)))
    except OSError as error:
        found.append(Finding("disk", State.UNKNOWN, f"{error.filename}: {error.strerror}"))
    found += look_at_connections(config)
    return Diagnosis(tuple(found))


@click.command("doctor")
@options.json_option
@click.pass_obj
def command(session: Session, *, as_json: bool) -> int:
    """Check what the collector stands on, and say what to do.

    Looks at the configuration and rules, the database (reachable, how fast, schema, takes writes,
    room for every pool), the collectors' heartbeats, the certificates and keys, the listening port, who was not let
    in, clocks, for SQLite disk space and, where hosts are asked over SSH, its keys and files and whom nobody vouches
    for. Run it on the collector's machine, with its configuration and
    environment, as the collector's user or as root.

    \b
    Examples:
      collector-cli doctor
      collector-cli --config /etc/fleetpulse/collector.toml doctor --json

    Exit codes: the worst finding, 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    """
    return session.answer(diagnose(session), as_json=as_json)
