"""Trust the keys that hosts show, after somebody has looked at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncssh import SSHKey

from collector.cli.change import ask, change
from collector.cli.output import Cell, Page, Table, plain, summary
from collector.cli.session import CliError, Session, complain
from collector.cli.ssh_offers import Offer, Verdict, fetch_offers, lines_of, lines_with
from collector.cli.ssh_plan import name_problem
from collector.cli.ssh_targets import find_targets
from collector.core.render import count
from collector.ssh.trust import TrustedKeys
from collector.store.ssh_hosts import note_change
from collector.store.ssh_known_hosts import add_known_hosts, forget_known_hosts, load_known_hosts
from collector.store.store import Transaction
from fleetpulse.model import State

_STYLES = {
    Verdict.NEW: "warning",
    Verdict.TRUSTED: "ok",
    Verdict.CHANGED: "critical",
    Verdict.REVOKED: "critical",
    Verdict.FAILED: "unknown",
}


@dataclass(frozen=True)
class Wish:
    """What was asked for: which hosts, a fingerprint that somebody has (or empty), and how bravely."""

    names: tuple[str, ...]
    fingerprint: str
    replace: bool
    yes: bool

    def takes(self, offer: Offer) -> bool:
        """Whether the keys of the offer are to be trusted from now on."""
        return offer.verdict is Verdict.NEW or (offer.verdict is Verdict.CHANGED and self.replace)


@dataclass(frozen=True)
class Trusting:
    """How the hosts stand now. `taken` are those whose keys were not trusted before."""

    offers: Sequence[Offer]
    taken: frozenset[int]

    @property
    def state(self) -> State:
        """CRITICAL where another key was trusted and still is, WARNING where a host shows none."""
        left = [offer.verdict for number, offer in enumerate(self.offers) if number not in self.taken]
        if Verdict.CHANGED in left or Verdict.REVOKED in left:
            return State.CRITICAL
        return State.WARNING if Verdict.FAILED in left else State.OK

    def page(self, rows: int | None) -> Page:
        """A summary, and the keys."""
        good = sum(self._is_good(number) for number in range(len(self.offers)))
        text = f"{good} of {count(len(self.offers), 'host')} trusted"
        cells = [
            row
            for number, offer in enumerate(self.offers)
            for row in _rows(offer, "trusted from now on" if number in self.taken else "")
        ]
        return [summary(self.state, text), Table(_HEADINGS, cells[:rows])]

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "state": self.state.name,
            "hosts": [
                {
                    "name": offer.target.name,
                    "trusted": self._is_good(number),
                    "changed": number in self.taken,
                    "problem": _problem(offer) if not self._is_good(number) else None,
                    "offered": list(map(_key_json, offer.keys)),
                    "known": list(map(_key_json, offer.trusted.keys)),
                }
                for number, offer in enumerate(self.offers)
            ],
        }

    def _is_good(self, number: int) -> bool:
        return number in self.taken or self.offers[number].verdict is Verdict.TRUSTED


_HEADINGS = ("HOST", "WHERE", "KEY", "FINGERPRINT", "STATE")


def trust_hosts(session: Session, wish: Wish, *, as_json: bool) -> int:
    """Ask the hosts for their keys, show them, and trust them if somebody says so; the exit code."""
    site = session.loaded.config.ssh
    with session.store() as store:
        with store.transaction(write=False) as tx:
            targets = find_targets(tx, wish.names, site)
            known = load_known_hosts(tx)
        for target in targets:
            problem = name_problem(target.key_alias)
            if problem:
                raise CliError(
                    f"{target.key_alias!r}: {problem}; a key can be trusted once it is called something else: "
                    "collector-cli rename"
                )
        offers = fetch_offers(targets, site, known)
        if wish.fingerprint:
            offers = [_only(offer, wish.fingerprint) for offer in offers]
        taken = frozenset(number for number, offer in enumerate(offers) if wish.takes(offer))
        if taken and not wish.yes and not wish.fingerprint:
            _ask([offers[number] for number in sorted(taken)])
        if taken:
            chosen = [offers[number] for number in sorted(taken)]
            change(store, lambda tx, now: _write(tx, chosen, now))
            with store.transaction(write=False) as tx:
                _warn(chosen, TrustedKeys(load_known_hosts(tx), site.known_hosts))
    return session.answer(Trusting(offers, taken), as_json=as_json)


def _only(offer: Offer, fingerprint: str) -> Offer:
    """The offer of the one key that is meant. Raises CliError if the host does not show it."""
    if offer.problem:
        return offer
    wanted = fingerprint.rstrip("=")
    keys = tuple(key for key in offer.keys if key.get_fingerprint() == wanted)
    if not keys:
        shown = ", ".join(f"{key.get_algorithm()} {key.get_fingerprint()}" for key in offer.keys)
        raise CliError(f"{offer.target.name} shows no key with the fingerprint {fingerprint}, but {shown}")
    return offer._replace(keys=keys)


def _ask(offers: Sequence[Offer]) -> None:
    rows = [row for offer in offers for row in _rows(offer)]
    keys = count(sum(len(offer.keys) for offer in offers), "key")
    replaced = sum(offer.verdict is Verdict.CHANGED for offer in offers)
    question = f"Trust {keys} of {count(len(offers), 'host')}"
    if replaced:
        question += f", in place of other keys of {replaced}"
    ask(f"{question}?", plain([Table(_HEADINGS, rows)]).splitlines())


def _write(tx: Transaction, offers: Sequence[Offer], now: int) -> None:
    note_change(tx)
    stored = load_known_hosts(tx)
    for offer in offers:
        if offer.verdict is Verdict.CHANGED:
            forget_known_hosts(tx, lines_with(offer.target, offer.other, stored))
    add_known_hosts(tx, [text for offer in offers for text in lines_of(offer.target, offer.keys)], now)


def _warn(offers: Sequence[Offer], trusted: TrustedKeys) -> None:
    """Tell of keys that were to be replaced, and are trusted by what is not this host's alone."""
    for offer in offers:
        target = offer.target
        known = trusted.of((target.key_alias, target.address), target.port).keys
        left = [key.get_fingerprint() for key in offer.other if key in known]
        if offer.verdict is Verdict.CHANGED and left:
            complain(
                f"{target.name}: {', '.join(left)} is still trusted, by a pattern or by a file in ssh.known_hosts"
            )


def _rows(offer: Offer, instead: str = "") -> list[tuple[Cell, ...]]:
    """A host's keys, the trusted ones that differ after those that it shows."""
    name, verdict = Cell(offer.target.name, "strong"), offer.verdict
    where = Cell(f"{offer.target.address}:{offer.target.port}")
    state = Cell(instead, "ok") if instead else Cell(_problem(offer), _STYLES[verdict])
    if not offer.keys:
        return [(name, where, Cell("-"), Cell("-"), state)]
    rows: list[tuple[Cell, ...]] = [(name, where, *_key(key), state) for key in offer.keys]
    if verdict is Verdict.CHANGED:
        what = Cell("trusted no more" if instead else "the trusted one", "dim")
        rows += [(name, where, *_key(key), what) for key in offer.other]
    return rows


def _key(key: SSHKey) -> tuple[Cell, Cell]:
    return Cell(key.get_algorithm()), Cell(key.get_fingerprint())


def _key_json(key: SSHKey) -> dict[str, object]:
    return {"type": key.get_algorithm(), "fingerprint": key.get_fingerprint()}


def _problem(offer: Offer) -> str:
    if offer.verdict is Verdict.CHANGED:
        return f"{offer.verdict}; if this one is right: --replace"
    return offer.problem or offer.verdict.value
