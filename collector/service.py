"""The collector service: wiring, signals, and the order in which it stops.

Stop order, on SIGTERM or SIGINT:

1. The health service says NOT_SERVING; nobody can connect or enrol any more, and no host is asked over SSH.
2. Every agent gets Goodbye, with a time of its own to come back.
3. What was admitted is committed and acked, for at most `drain_timeout`.
4. The server closes the streams that are left.
5. The sweeper writes the last heartbeat, if the database lets it: from now on nobody listens.
6. What is left of enrolments and renewals ends, and the pool is closed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

# grpc's own messages are for its developers; what matters of them comes as our errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click
import structlog
import uvloop
from grpc import aio

from collector import config as configuration
from collector import logs
from collector.clock import Clock
from collector.config import Config, Loaded, Ssh
from collector.core.render import escape
from collector.core.rules import RuleSet
from collector.health import Health
from collector.identity.key_files import KeyringError
from collector.identity.service import IdentityService, enroll_address
from collector.ingest.bounds import Bounds
from collector.ingest.door import Door
from collector.ingest.health_checks import HealthChecks
from collector.ingest.server import IngestServicer, create_server
from collector.ingest.sessions import Sessions
from collector.ingest.writers import Writers
from collector.rules_file import fingerprint, load_rules
from collector.ssh.keys import ClientKeys, KeyUnusable
from collector.ssh.service import SshService
from collector.ssh.ssh_config import SshConfigFile
from collector.ssh.trust import TrustedKeys
from collector.start import (
    EXIT_CONFIG,
    EXIT_SOFTWARE,
    EXIT_UNAVAILABLE,
    StartError,
    calm_garbage_collector,
    check_budget,
    raise_open_files,
)
from collector.store import collectors, hosts, schema
from collector.store.collectors import CollectorRow
from collector.store.errors import SchemaMismatch, StoreError, StoreMisconfigured, StoreUnavailable
from collector.store.store import Store, open_store
from collector.store.url import parse_url
from collector.sweeper import Sweeper
from fleetpulse import __version__, systemd
from fleetpulse.config import ConfigError
from fleetpulse.systemd import Notifier

_LAST_HEARTBEAT = 5.0  # seconds that it may take
_LAST_POLLS = 5.0
_LAST_ACKS = 5.0  # seconds that streams stay open after the time to drain, at most

# Seconds after which a transaction hangs in a database that says nothing. Longer than the wait for a
# locked row, after which the database does say something.
_HANGING = 8.0

_RULES_FINGERPRINT = "rules_fingerprint"

log = structlog.get_logger()


class Service:
    """One running collector."""

    def __init__(self, config: Config, store: Store, rules: RuleSet):
        self._config = config
        self._store = store
        self._rules = rules
        self._clock = Clock()
        self._stop = asyncio.Event()
        self._crashed = False
        self._loop = asyncio.get_running_loop()
        self._health = Health()
        self._rules_changed = threading.Event()
        self._identity = IdentityService(config, store, self._clock.now) if config.tls == "on" else None
        self._sessions = Sessions()
        self._writers = Writers(
            store,
            lambda: self._rules,
            self._clock.now,
            self._health.note,
            number=1 if store.dialect.single_writer else config.writers,
            batch_reports=config.batch_reports,
            linger=config.batch_linger,
        )
        limits = config.limits
        self._door = Door(self._writers, limits.queue_reports)
        self._servicer = IngestServicer(
            self._door,
            self._sessions,
            self._clock.now,
            Bounds(
                limits.batch_reports,
                limits.message_size,
                limits.hello_timeout,
                limits.connections,
                limits.reports_per_second,
                limits.hellos_per_minute,
            ),
            name=config.name,
            credentials=self._identity.desk if self._identity else None,
        )
        self._ssh = SshService(config, store, self._writers, self._health, self._clock.now)
        self._health_checks = HealthChecks(self._health, self._servicer.counts, self._servicer.calls)

    async def run(self) -> int:
        """Serve until a signal; the exit code. Raises StartError."""
        identity = self._identity
        server = create_server(self._servicer, [identity.handshakes] if identity else [])
        self._health_checks.serve_on(server)
        address, enroll_address = self._bind(server)
        sweeper = self._create_sweeper(address)
        sweeper.join_collectors(lambda tx: check_budget(self._config, tx))
        self._writers.start()
        await server.start()
        if identity:
            await identity.start()
        sweeper.start()
        self._ssh.start()
        self._watch_signals()
        log.info(
            "listening",
            address=address,
            tls=self._config.tls,
            enroll_address=enroll_address,
            database=self._config.database,
            pool=self._config.pool_size,
        )
        # Not the loop's executor, which the end of the program waits for: a database may say nothing.
        threading.Thread(target=self._judge_when_asked, name="rejudge", daemon=True).start()
        self._rules_changed.set()
        watches = [self._watch_database(), self._sessions.watch()]
        if identity:
            watches.append(identity.watch(self._servicer.counts, self._servicer.tell_trust))
        notifier = Notifier()
        watches.append(notifier.keep_alive())
        tasks = [asyncio.create_task(watch) for watch in watches]
        notifier.tell(systemd.READY, systemd.status(f"listening on {address}"))
        await self._stop.wait()
        log.info("stopping", streams=len(self._sessions))
        notifier.tell(systemd.STOPPING)
        await self._drain(server)
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(sweeper.stop, _LAST_HEARTBEAT)
        if identity:
            await asyncio.to_thread(identity.close, self._servicer.counts)
        self._store.close()
        log.info("connections used", **asdict(self._store.pool_stats))
        log.info("asked over SSH", **self._ssh.counts)
        log.info("stopped", **self._servicer.counts)
        return EXIT_SOFTWARE if self._crashed else 0

    def reload_rules(self) -> None:
        """Read the rules again and judge the stored values by them; broken rules change nothing."""
        try:
            self._rules = load_rules(self._config.rules)
        except ConfigError as error:
            log.error("the rules stay as they were", error=str(error))  # noqa: TRY400 - the admin's error
            return
        log.info("rules loaded", rules=len(self._rules.rules))
        self._rules_changed.set()

    def _bind(self, server: aio.Server) -> tuple[str, str]:
        """Take both ports; their addresses, empty for one that there is not."""
        listen, identity = self._config.listen, self._identity
        try:
            if identity is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, identity.report_port_credentials)
            address = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"
            if identity is None:
                return address, ""
            listen = enroll_address(self._config)
            return address, identity.bind_enrolment(self._servicer.counts)
        except RuntimeError:
            raise StartError(
                f"cannot listen on {listen}: another program has the port, or the address is not this machine's; "
                f"see: ss -ltnp",
                EXIT_UNAVAILABLE,
            ) from None

    def _create_sweeper(self, address: str) -> Sweeper:
        silence = self._config.silence
        return Sweeper(
            self._store,
            CollectorRow(self._config.name, address, __version__, self._config.pool_size, 0, 0, None),
            self._clock,
            self._health.note,
            interval=silence.sweep_interval,
            fleet_share=silence.fleet_share,
            fleet_minimum=silence.fleet_minimum,
            event_retention=self._config.event_retention.milliseconds,
            failing_for=lambda: self._health.failing_for,
            on_revoked=self._end_certificates,
        )

    def _end_certificates(self, fingerprints: Collection[bytes]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and every stream with it
            self._loop.call_soon_threadsafe(self._sessions.end_certificates, fingerprints)

    def _watch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload_rules)
        threading.excepthook = self._note_crash

    def _note_crash(self, crash: threading.ExceptHookArgs) -> None:
        """A thread of ours ended by a defect. Better to stop in order than to go on without it."""
        log.critical(
            "a thread has crashed", thread=crash.thread and crash.thread.name, exc_info=crash.exc_value
        )
        self._crashed = True
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _watch_database(self) -> None:
        """Notice a transaction that hangs: its thread cannot tell until the driver gives up."""
        hangs = StoreUnavailable(f"database: has not answered for more than {_HANGING:g} s")
        while True:
            await asyncio.sleep(1)
            self._health.note(hangs if self._store.pool_stats.longest_use > _HANGING else None, "watch")

    def _judge_when_asked(self) -> None:
        while True:
            self._rules_changed.wait()
            self._rules_changed.clear()
            self._judge_stored_values()

    def _judge_stored_values(self) -> None:
        """If the rules are not those by which the stored states were judged, judge them again."""
        rules = self._rules
        try:
            with self._store.transaction() as tx:
                if collectors.load_setting(tx, _RULES_FINGERPRINT) == fingerprint(rules):
                    return
                known = hosts.list_hosts(tx)
                collectors.save_setting(tx, _RULES_FINGERPRINT, fingerprint(rules))
        except StoreError as error:
            log.warning("stored values wait for their next report to be judged anew", error=str(error))
            return
        self._writers.rejudge(known)
        log.info("judging stored values by the new rules", hosts=len(known))

    async def _drain(self, server: aio.Server) -> None:
        self._health_checks.stop()
        if self._identity:
            await self._identity.stop_enrolment()
        # An agent that comes back too early is to find nobody, rather than be cut off in a handshake.
        closing_port = asyncio.create_task(server.stop(self._config.drain_timeout + _LAST_ACKS))
        deadline = self._loop.time() + self._config.drain_timeout
        ssh = asyncio.create_task(asyncio.to_thread(self._ssh.stop, _LAST_POLLS))
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._sessions.say_goodbye()  # may wait for agents that do not read
                await self._sessions.wait_empty()
        await ssh
        if not await asyncio.to_thread(self._writers.close, max(1.0, deadline - self._loop.time())):
            log.error("stopped before everything was committed; the agents keep it")
        await server.stop(grace=1.0)
        await closing_port


async def _serve(config: Config, store: Store, rules: RuleSet) -> int:
    return await Service(config, store, rules).run()


def _start(loaded: Loaded) -> int:
    config = loaded.config
    rules = load_rules(config.rules)
    with closing(_open_store(loaded, pool_size=1)) as store:
        schema.require_known_version(store)
    raise_open_files()
    calm_garbage_collector()
    store = _open_store(loaded, pool_size=config.pool_size, patient=True)
    return uvloop.run(_serve(config, store, rules))


def _open_store(loaded: Loaded, *, pool_size: int, patient: bool = False) -> Store:
    return open_store(
        loaded.config.database,
        password=loaded.database_password,
        pool_size=pool_size,
        pool_timeout=loaded.config.pool_timeout,
        patient=patient,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", type=click.Path(path_type=Path), help="The TOML file to read.")
@click.option("--check-config", is_flag=True, help="Check configuration and rules, and end.")
@click.version_option(__version__)
def main(path: Path | None, *, check_config: bool) -> None:
    """Run the fleetpulse collector: take in reports, write what differs.

    Configuration comes from --config, else from $FLEETPULSE_CONFIG, else from
    /etc/fleetpulse/collector.toml; every key has an environment override such as
    FLEETPULSE_DATABASE or FLEETPULSE_LISTEN. SIGHUP reloads the rules, SIGTERM drains and ends.

    Exit codes: 0 stopped by a signal, 69 the database or the port cannot be had, 70 a defect,
    78 the configuration, a certificate, a key or the database's schema is not right.
    """
    try:
        loaded = configuration.load(path)
        logs.configure(loaded.config.log.level, loaded.config.log.format)
        if check_config:
            load_rules(loaded.config.rules)
            parse_url(loaded.config.database)
            _check_ssh_files(loaded.config.ssh)
            click.echo(f"{loaded.path or 'built-in defaults'}: OK")
            return
        status = _start(loaded)
    except (ConfigError, KeyringError, SchemaMismatch, StoreMisconfigured) as error:
        _end(str(error), EXIT_CONFIG)
    except StoreError as error:
        _end(str(error), EXIT_UNAVAILABLE)
    except StartError as error:
        _end(str(error), error.status)
    sys.exit(status)


def _check_ssh_files(site: Ssh) -> None:
    """Raises ConfigError for a file that [ssh] names and that cannot be used."""
    keys = ClientKeys()
    for path in site.keys:
        try:
            keys.load(path)
        except KeyUnusable as error:
            raise ConfigError(f"ssh.keys: {error}") from None
    TrustedKeys(files=site.known_hosts)
    if site.config_file:
        SshConfigFile(site.config_file).settings_of("localhost")


def _end(message: str, status: int) -> NoReturn:
    click.echo(f"fleet-collector: {escape(message)}", err=True)
    sys.exit(status)
