"""Tokens as people and programs see them. Pure but for the time zone of this machine."""

from __future__ import annotations

from collections.abc import Sequence

from collector.cli.invitation import Invitation
from collector.cli.output import Cell, Page, Table, summary
from collector.cli.times import local, utc
from collector.core.render import count, duration, escape
from collector.store.tokens import StoredToken
from fleetpulse.model import State


def explain(token: StoredToken, ttl: int, invited: Invitation) -> list[str]:
    """What to do with a new token, line by line; the token itself is not in it."""
    whom = escape(token.hostname) or "any machine"
    if token.host is not None:
        whom += ", which takes over its record"
    lines = [
        f"token {token.number}: for {whom}; good for {duration(ttl)} and {count(token.uses, 'use')}",
        "put it into a file that only root can read, and run on the machine:",
        f"  {invited.command('FILE', again=token.host is not None)}",
    ]
    if token.host is None:
        lines.append("with --force if it was enrolled before, and its host removed")
    return [*lines, invited.problem] if invited.problem else lines


def _state(token: StoredToken, now: int) -> str:
    if token.is_valid(now):
        return "valid"
    return "used up" if token.uses_left <= 0 and not token.was_ended else "expired"


def as_json_of(token: StoredToken, now: int) -> dict[str, object]:
    """See docs/cli.md."""
    return {
        "id": token.number,
        "state": _state(token, now),
        "hostname": token.hostname or None,
        "known_host": token.host is not None,
        "groups": list(token.groups),
        "uses": token.uses,
        "uses_left": max(0, token.uses_left),
        "created_at": utc(token.created_at),
        "expires_at": utc(token.expires_at),
    }


def listing(tokens: Sequence[StoredToken], now: int) -> Page:
    """Whom they are for, and until when."""
    valid = sum(token.is_valid(now) for token in tokens)
    rows = [
        (
            Cell(str(token.number), "strong"),
            Cell(_state(token, now), "" if token.is_valid(now) else "dim"),
            Cell(token.hostname or "any"),
            Cell(f"{max(0, token.uses_left)} of {token.uses}"),
            Cell(local(token.expires_at)),
            Cell(",".join(token.groups) or "-"),
        )
        for token in tokens
    ]
    table = Table(("ID", "STATE", "FOR", "USES LEFT", "EXPIRES", "GROUPS"), rows)
    return [summary(State.OK, f"{count(valid, 'valid token')}, {len(tokens) - valid} ended"), table]
