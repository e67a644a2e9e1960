"""Trusted host keys without asking any host: files, CAs, what is stored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from collector.cli.change import change
from collector.cli.known_hosts import KnownLine, parse_line, parse_public_key
from collector.cli.output import Cell, Table, line
from collector.cli.session import CliError, Session, complain
from collector.core.render import count, listed
from collector.store.ssh_hosts import note_change
from collector.store.ssh_known_hosts import add_known_hosts, forget_known_hosts, load_known_hosts
from collector.store.store import Transaction
from fleetpulse.model import State

_KINDS = {"": "host", "cert-authority": "ca", "revoked": "revoked"}

Parsed = TypeVar("Parsed")


def take_file(session: Session, path: Path, *, replace: bool, as_json: bool) -> int:
    """Trust the keys in a known_hosts file. Lines that make no sense are told and left out, as ssh does.

    `replace`: of the names in it, trust no other keys. A stored line whose names are hashed or patterns stays.
    """
    lines, wrong = _parse(_read(path), parse_line)
    if wrong:
        complain(f"{path}: {count(len(wrong), 'line')} left out: {listed(wrong, 5)}")
    if not lines:
        raise CliError(f"{path}: holds no key of a host")
    return _take(session, lines, replace=replace, as_json=as_json)


def take_authority(session: Session, path: Path, pattern: str, *, as_json: bool) -> int:
    """Trust hosts whose name matches the pattern if they show a certificate of this CA."""
    if not pattern or not pattern.isprintable() or any(map(str.isspace, pattern)):
        raise click.BadParameter("a pattern has no blanks", param_hint="--for")
    texts = _read(path)
    if any("PRIVATE KEY-----" in text for text in texts):
        raise CliError(f"{path} is a private key; give {path}.pub")
    keys, wrong = _parse(texts, parse_public_key)
    if wrong or not keys:
        raise CliError(f"{path}: {wrong[0] if wrong else 'holds no public key'}")
    return _take(session, [KnownLine("cert-authority", pattern, *key) for key in keys], as_json=as_json)


def show_lines(session: Session, *, as_json: bool) -> int:
    """List what is trusted."""
    with session.store() as store, store.transaction(write=False) as tx:
        lines = load_lines(tx)
    if as_json:
        session.show_json({"keys": [line_json(known) for known in lines]})
    elif not lines:
        session.show_line(line("no key is trusted; see: collector-cli ssh trust --help"))
    else:
        session.show([Table(("NAMES", "KIND", "TYPE", "FINGERPRINT"), list(map(_row, lines)))])
    return State.OK.value


def forget(session: Session, names: Sequence[str], *, as_json: bool) -> int:
    """Trust no key of these names any more."""
    wanted = [name for name in dict.fromkeys(names) if name]

    def write(tx: Transaction, now: int) -> list[KnownLine]:
        gone: list[KnownLine] = []
        for name in wanted:
            found = [known for known in load_lines(tx) if known.is_of(name)]
            if not found:
                raise CliError(f"no key of {name} is trusted; see: collector-cli ssh trust --list")
            forget_known_hosts(tx, [known.text for known in found])
            rest = [left.text for known in found if (left := known.without(name)) is not None]
            add_known_hosts(tx, rest, now)
            gone += [known._replace(names=name) for known in found]
        note_change(tx)
        return gone

    with session.store() as store:
        gone = change(store, write)
    if as_json:
        session.show_json({"forgotten": [line_json(known) for known in gone]})
        return State.OK.value
    for known in gone:
        session.show_line(line(f"forgot {known.key_type} {known.fingerprint} of {known.names}"))
    return State.OK.value


def load_lines(tx: Transaction) -> list[KnownLine]:
    """What is stored, as far as it makes sense."""
    return _parse(load_known_hosts(tx), parse_line)[0]


def line_json(known: KnownLine) -> dict[str, object]:
    """See docs/cli.md."""
    return {
        "names": known.names,
        "kind": _KINDS[known.marker],
        "type": known.key_type,
        "fingerprint": known.fingerprint,
    }


def _take(session: Session, lines: Sequence[KnownLine], *, as_json: bool, replace: bool = False) -> int:
    texts = list(dict.fromkeys(known.text for known in lines))

    def write(tx: Transaction, now: int) -> tuple[int, int]:
        gone = _forget_others(tx, lines, now) if replace else 0
        added = add_known_hosts(tx, texts, now)
        if added or gone:
            note_change(tx)
        return added, gone

    with session.store() as store:
        added, gone = change(store, write)
    if as_json:
        session.show_json({"added": added, "known": len(texts) - added, "forgotten": gone})
    else:
        text = f"{count(added, 'key')} trusted from now on, {len(texts) - added} trusted already"
        session.show_line(line(text + (f", {gone} forgotten" if gone else "")))
    return State.OK.value


def _forget_others(tx: Transaction, lines: Sequence[KnownLine], now: int) -> int:
    """Forget the keys that are trusted of the same names and are not among these; how many."""
    texts = {known.text for known in lines}
    renewed = {name for known in lines if not known.marker for name in known.names.split(",")}
    old, rest = [], []
    for known in load_lines(tx):
        names = known.names.split(",")
        if known.marker or known.text in texts or renewed.isdisjoint(names):
            continue
        old.append(known.text)
        if others := [name for name in names if name not in renewed]:
            rest.append(known._replace(names=",".join(others)).text)
    if old:
        forget_known_hosts(tx, old)
        add_known_hosts(tx, rest, now)
    return len(old)


def _parse(texts: Iterable[str], parse: Callable[[str], Parsed | None]) -> tuple[list[Parsed], list[str]]:
    """What the lines say, and what is wrong with the others."""
    found, wrong = [], []
    for number, text in enumerate(texts, 1):
        try:
            parsed = parse(text)
        except ValueError as error:
            wrong.append(f"line {number} {error}")
        else:
            if parsed is not None:
                found.append(parsed)
    return found, wrong


def _read(path: Path) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from None
    return data.decode(errors="replace").splitlines()


def _row(known: KnownLine) -> tuple[Cell, ...]:
    kind = _KINDS[known.marker]
    return (
        Cell(known.names, "strong"),
        Cell(kind, "critical" if kind == "revoked" else ""),
        Cell(known.key_type),
        Cell(known.fingerprint),
    )
