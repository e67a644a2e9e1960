"""collector-cli db: the database's schema."""

from __future__ import annotations

import time

import click

from collector.cli import options
from collector.cli.output import line, summary
from collector.cli.session import Session
from collector.store import schema
from collector.store.errors import SchemaMismatch
from fleetpulse.model import State


@click.group("db", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Upgrade or check the database's schema."""


@command.command("upgrade")
@click.pass_obj
def upgrade(session: Session) -> int:
    """Make the schema, or bring it to the version that this program needs.

    Forwards only. Safe to run twice, and on several machines at once. An SQLite database, and its
    folder, are made when they are not there.

    \b
    Example:
      collector-cli db upgrade

    Exit codes: 0 the schema is as needed; 3 it is not, and the message says why.
    """
    store = session.open_store(create=True)
    try:
        applied = schema.upgrade(store, lambda: time.time_ns() // 1_000_000)
    finally:
        store.close()
    for version in applied:
        session.show_line(line(f"applied schema version {version}"))
    session.show_line(line(f"the database has schema version {schema.known_version()}"))
    return State.OK.value


@command.command("check")
@options.json_option
@click.pass_obj
def check(session: Session, *, as_json: bool) -> int:
    """Compare the database's schema version with the one that this program needs.

    \b
    Example:
      collector-cli db check && systemctl start fleet-collector

    Exit codes: 0 they are the same; 2 they differ, and the message says what to run; 3 the database
    cannot be read.
    """
    store = session.open_store()
    try:
        stored, known = schema.stored_version(store), schema.known_version()
        text = f"the database has schema version {stored}, as needed"
        try:
            schema.require_known_version(store)
        except SchemaMismatch as error:
            text = str(error)
    finally:
        store.close()
    state = State.OK if stored == known else State.CRITICAL
    if as_json:
        session.show_json(
            {"state": state.name, "summary": text, "stored_version": stored, "known_version": known}
        )
    else:
        session.show([summary(state, text)])
    return state.value
