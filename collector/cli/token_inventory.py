"""Where the tokens of an inventory go: into a folder, or to standard output."""

from __future__ import annotations

from pathlib import Path

from collector.cli.bulk import Wanted, issue, issue_into
from collector.cli.invitation import invitation
from collector.cli.output import Cell, Table, summary
from collector.cli.session import Session
from collector.cli.token_files import TokenFolder
from collector.core.render import count
from fleetpulse.model import State


def write_tokens(session: Session, wanted: Wanted, output: Path, *, as_json: bool) -> int:
    """A file for each machine that needs a token; the exit code."""
    folder = TokenFolder(output)
    with session.store() as store:
        issued = issue_into(folder, store, wanted)
    created = list(issued.created)
    if as_json:
        invited = invitation(session.loaded.config)
        session.show_json(
            {
                "created": created,
                "kept": issued.kept,
                "enrolled": issued.enrolled,
                "collector": invited.collector or None,
                "ca_fingerprint": invited.fingerprint or None,
            }
        )
        return State.OK.value
    text = (
        f"{count(len(created), 'token')} made, {len(issued.kept)} still good, "
        f"{count(len(issued.enrolled), 'host')} enrolled already"
    )
    rows = [
        (Cell(name, "strong"), Cell(what), Cell("-" if what == "enrolled" else str(folder.path(name))))
        for what, names in (("created", created), ("kept", issued.kept), ("enrolled", issued.enrolled))
        for name in names
    ]
    session.show([summary(State.OK, text), Table(("HOST", "TOKEN", "FILE"), rows)])
    return State.OK.value


def print_tokens(session: Session, wanted: Wanted) -> int:
    """One line with the tokens and what else a machine needs, for a program, whoever looks; the exit code."""
    invited = invitation(session.loaded.config)
    with session.store() as store:
        issued = issue(store, wanted)
    session.show_json_line(
        {
            "tokens": issued.created,
            "enrolled": issued.enrolled,
            "collector": invited.collector or None,
            "enroll_port": invited.enroll_port or None,
            "ca_fingerprint": invited.fingerprint or None,
        }
    )
    return State.OK.value
