"""collector-cli token: what lets a machine become a host."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from collector.cli import options, token_inventory
from collector.cli.bulk import Wanted
from collector.cli.change import change
from collector.cli.inventory_file import read_names
from collector.cli.invitation import invitation
from collector.cli.output import line
from collector.cli.session import CliError, Session
from collector.cli.token_page import as_json_of, explain, listing
from collector.core.render import count
from collector.identity.tokens import hash_token, make_token
from collector.store.collectors import load_listening
from collector.store.enrolment import AmbiguousName, KnownNames, load_known_names
from collector.store.store import Transaction
from collector.store.tokens import (
    NewToken,
    StoredToken,
    add_tokens,
    delete_tokens,
    find_tokens,
    list_tokens,
)
from fleetpulse.convert import MAX_NAME
from fleetpulse.model import State, is_host_id

_TTL = 3_600_000
_INVENTORY_TTL = 86_400_000
_MAX_TTL = 366 * 86_400_000
_MAX_USES = 1_000_000


@click.group("token", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Make, list or revoke the tokens with which machines enroll."""


@command.command("create")
@click.option(
    "--host", "hostname", metavar="NAME", help="Only for this machine; a known one keeps its record."
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    help="Put who enrolls with it into this group; may be repeated.",
)
@click.option(
    "--ttl", type=options.duration, help="How long it is good for.  [default: 1h; 24h with --inventory]"
)
@click.option(
    "--uses", type=click.IntRange(1, _MAX_USES), help="How many machines may enroll with it.  [default: 1]"
)
@click.option(
    "--inventory",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A token for each machine listed here; - is standard input.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False, allow_dash=True),
    metavar="DIR",
    help="With --inventory: write the tokens to DIR/NAME.token; - prints them as JSON.",
)
@click.option(
    "--again", is_flag=True, help="With --inventory: new tokens for all, also for hosts that are enrolled."
)
@options.json_option
@click.pass_obj
def create(
    session: Session,
    hostname: str | None,
    groups: tuple[str, ...],
    ttl: int | None,
    uses: int | None,
    inventory: Path | None,
    output: Path | None,
    *,
    again: bool,
    as_json: bool,
) -> int:
    """Make a token, and print it: it is not stored, and cannot be shown again.

    On a terminal the command for the machine is shown, too. A token for a known host lets the machine
    take over its record: its name, groups, history and events; the host's older certificates are no
    longer accepted then.

    An inventory has one name a line (# starts a comment), or is the JSON of ansible-inventory --list,
    whose groups are taken over. Running the same again changes nothing: hosts with a valid
    certificate get no token, and tokens in DIR that are still good stay. Those of enrolled hosts that
    cannot be used any more are removed.

    With --output - nothing is written to disk: the tokens are printed, as one line of JSON, for a program
    that passes them on. Tokens that were made before stay good.

    \b
    Examples:
      collector-cli token create
      collector-cli token create --host web-17 --group web --ttl 10m
      collector-cli token create --uses 40 --ttl 8h --group lab-3 > lab-3.token
      ansible-inventory --list | collector-cli token create --inventory - --output tokens
      collector-cli token create --inventory names.txt --ttl 10m --output - | jq -r '.tokens["web-17"]'

    Exit codes: 0 made; 3 not, and the message says why.
    """
    options.check_groups(groups)
    if ttl is not None and not 0 < ttl <= _MAX_TTL:
        raise click.BadParameter("more than 0, and at most 366d", param_hint="--ttl")
    if inventory is not None:
        if hostname is not None or uses is not None:
            raise click.UsageError(
                "--inventory does not go with --host and --uses: each machine gets a token of its own"
            )
        if output is None:
            raise click.UsageError("--inventory needs --output DIR, or - for standard output")
        wanted = Wanted(read_names(inventory), groups, ttl or _INVENTORY_TTL, again)
        if str(output) == "-":
            return token_inventory.print_tokens(session, wanted)
        return token_inventory.write_tokens(session, wanted, output, as_json=as_json)
    if output is not None or again:
        raise click.UsageError("--output and --again go with --inventory")
    return _create_one(session, hostname, groups, ttl or _TTL, uses or 1, as_json=as_json)


@command.command("list")
@options.json_option
@click.pass_obj
def list_(session: Session, *, as_json: bool) -> int:
    """List tokens: whom they are for, and until when. Their text is not known.

    Those that have ended are remembered for 30 days, so that a refusal can say why.

    \b
    Examples:
      collector-cli token list
      collector-cli token list --json | jq '.tokens[] | select(.state == "valid") | .id'

    Exit codes: 0 listed; 3 the database cannot be read.
    """
    with session.store() as store, store.transaction(write=False) as tx:
        now = load_listening(tx).now
        tokens = list_tokens(tx)
    if as_json:
        session.show_json({"tokens": [as_json_of(token, now) for token in tokens]})
    else:
        session.show(listing(tokens, now))
    return State.OK.value


@command.command("revoke")
@click.argument("numbers", nargs=-1, required=True, type=int, metavar="ID...")
@click.pass_obj
def revoke(session: Session, numbers: tuple[int, ...]) -> int:
    """Accept tokens no more, by the ID that `list` shows. All of them are revoked, or none.

    Hosts that have enrolled with them stay: see collector-cli revoke.

    \b
    Example:
      collector-cli token revoke 12 13

    Exit codes: 0 they are no longer accepted; 3 they still are, and the message says why.
    """
    with session.store() as store:
        revoked = change(store, lambda tx, _: _revoke(tx, numbers))
    session.show_line(line(f"revoked {count(len(revoked), 'token')}"))
    return State.OK.value


def _revoke(tx: Transaction, numbers: tuple[int, ...]) -> list[int]:
    revoked = delete_tokens(tx, numbers)
    unknown = sorted(set(numbers) - set(revoked))
    if unknown:
        raise CliError(f"no token {', '.join(map(str, unknown))}; see: collector-cli token list")
    return revoked


def _create_one(
    session: Session, hostname: str | None, groups: tuple[str, ...], ttl: int, uses: int, *, as_json: bool
) -> int:
    text = make_token()

    def add(tx: Transaction, now: int) -> StoredToken:
        host, name = _target(load_known_names(tx), hostname) if hostname is not None else (None, "")
        add_tokens(tx, [NewToken(hash_token(text), name, host, groups, uses, now, now + ttl)])
        return find_tokens(tx, [hash_token(text)])[hash_token(text)]

    with session.store() as store:
        token = change(store, add)
    if not as_json:
        click.echo(text)
        if sys.stderr.isatty():
            for explanation in explain(token, ttl, invitation(session.loaded.config)):
                click.echo(explanation, err=True)
        return State.OK.value
    invited = invitation(session.loaded.config)
    session.show_json(
        {
            "token": text,
            **as_json_of(token, token.created_at),
            "collector": invited.collector or None,
            "ca_fingerprint": invited.fingerprint or None,
            "command": invited.command("FILE", again=token.host is not None),
        }
    )
    return State.OK.value


def _target(known: KnownNames, hostname: str) -> tuple[int | None, str]:
    """The record and the machine's name that a token is for."""
    if not 0 < len(hostname) <= MAX_NAME or not hostname.isprintable():
        raise click.BadParameter(f"1 to {MAX_NAME} printable characters", param_hint="--host")
    try:
        record = known.find(hostname)
    except AmbiguousName as error:
        raise CliError(f"{error}; give the UUID") from None
    if record is None:
        if is_host_id(hostname):
            raise CliError(f"no host {hostname}; see: collector-cli hosts")
        return None, hostname
    if record.host_id == hostname.lower():
        return record.host, record.own_name or record.hostname
    return record.host, hostname
