"""Trust the keys that hosts show, after somebody has looked at them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncssh import SSHKey

from collector.cli.change import ask, change, require_somebody
from collector.cli.options import Labels
from collector.cli.output import Cell, Page, Table, summary
from collector.cli.session import CliError, Session, complain, select
from collector.cli.ssh_offers import Offer, Verdict, fetch_offers, lines_of, lines_without, names_of
from collector.cli.ssh_places import endpoint
from collector.cli.ssh_plan import name_problem
from collector.cli.ssh_targets import find_targets, is_shared, targets_of
from collector.cli.ssh_trust_lines import load_lines
from collector.cli.ssh_untrusted import untrusted
from collector.config import Ssh
from collector.core.render import count, listed
from collector.ssh.target import Target
from collector.ssh.trust import TrustedKeys
from collector.store.reading import load_hosts
from collector.store.ssh_hosts import load_polled_numbers, note_change
from collector.store.ssh_known_hosts import add_known_hosts, forget_known_hosts, load_known_hosts
from collector.store.store import Transaction
from fleetpulse.model import State

_STYLES = {
    Verdict.NEW: "warning",
    Verdict.TRUSTED: "ok",
    Verdict.BY_CA: "ok",
    Verdict.CHANGED: "critical",
    Verdict.REVOKED: "critical",
    Verdict.FAILED: "unknown",
}
_GOOD = (Verdict.TRUSTED, Verdict.BY_CA)


@dataclass(frozen=True)
class Wish:
    """What was asked for: which hosts, a fingerprint that somebody has (or empty), and how bravely.

    `groups` and `labels`: the hosts of these. `untrusted`: the polled hosts of which nothing is trusted; among
    those, if any are given.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Labels
    fingerprint: str
    untrusted: bool
    replace: bool
    yes: bool

    def takes(self, offer: Offer) -> list[SSHKey]:
        """Which keys of the offer are to be trusted from now on."""
        if offer.verdict in (Verdict.NEW, Verdict.TRUSTED) or (
            offer.verdict is Verdict.CHANGED and self.replace
        ):
            return offer.fresh
        return []


@dataclass(frozen=True)
class Trusting:
    """How the hosts stand now. `taken` are those, by their places, of which keys are trusted from now on."""

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
            for row in _rows(offer, is_taken=number in self.taken)
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
        return number in self.taken or self.offers[number].verdict in _GOOD


_HEADINGS = ("HOST", "WHERE", "KEY", "FINGERPRINT", "STATE")


def trust_hosts(session: Session, wish: Wish, *, as_json: bool) -> int:
    """Ask the hosts for their keys, show them, and trust them if somebody says so; the exit code."""
    site = session.loaded.config.ssh
    with session.store() as store:
        with store.transaction(write=False) as tx:
            targets = _targets(tx, wish, site)
            known = load_known_hosts(tx)
        for target in targets:
            problem = name_problem(target.key_alias)
            if problem:
                raise CliError(
                    f"{target.key_alias!r}: {problem}; a key can be trusted once it is called something else: "
                    "collector-cli rename"
                )
        if targets:
            session.show_progress(f"asking {count(len(targets), 'host')} ...")
        offers = fetch_offers(targets, site, known)
        if wish.fingerprint:
            offers = [_only(offer, wish.fingerprint) for offer in offers]
        chosen = {number: keys for number, offer in enumerate(offers) if (keys := wish.takes(offer))}
        if not wish.yes and not wish.fingerprint and chosen:
            if all(offers[number].verdict is Verdict.TRUSTED for number in chosen) and not sys.stdin.isatty():
                chosen = {}  # nobody to ask about further keys of hosts that are trusted
            else:
                _ask(session, offers, chosen)
        if chosen:
            change(store, lambda tx, now: _write(tx, offers, chosen, site, now))
            with store.transaction(write=False) as tx:
                trusted = TrustedKeys(load_known_hosts(tx), site.known_hosts)
            _warn([offers[number] for number in chosen], trusted)
    return session.answer(Trusting(offers, frozenset(chosen)), as_json=as_json)


def _targets(tx: Transaction, wish: Wish, site: Ssh) -> list[Target]:
    """Whom to ask. Raises CliError, ConfigError."""
    if wish.names:
        return find_targets(tx, wish.names, site)
    lines = load_hosts(tx, select(tx, wish.groups, wish.labels))
    if wish.untrusted:
        polled = load_polled_numbers(tx, [line.host for line in lines])
        return untrusted(tx, targets_of(tx, [line for line in lines if line.host in polled], site), site)
    targets = targets_of(tx, lines, site)
    return [one for one in targets if not one.address.startswith("unix")]  # an agent on this machine


def _only(offer: Offer, fingerprint: str) -> Offer:
    """The offer of the one key that is meant. Raises CliError if the host does not show it."""
    if offer.problem:
        return offer
    wanted = fingerprint.rstrip("=")
    keys = tuple(key for key in offer.keys if key.get_fingerprint() == wanted)
    if not keys:
        shown = ", ".join(f"{key.get_algorithm()} {key.get_fingerprint()}" for key in offer.keys)
        raise CliError(f"{offer.target.name} shows no key with the fingerprint {fingerprint}, but {shown}")
    return offer._replace(keys=keys, is_chosen=True)


def _ask(session: Session, offers: Sequence[Offer], chosen: Mapping[int, Sequence[SSHKey]]) -> None:
    require_somebody()
    shown = [offer for number, offer in enumerate(offers) if number in chosen or offer.problem]
    session.show_aside([Table(_HEADINGS, [row for offer in shown for row in _rows(offer)])])
    keys = count(sum(map(len, chosen.values())), "key")
    replaced = sum(offers[number].verdict is Verdict.CHANGED for number in chosen)
    question = f"Trust {keys} of {count(len(chosen), 'host')}"
    if replaced:
        question += f", in place of other keys of {replaced}"
    missing = [offer.target.name for offer in shown if offer.problem]
    if missing:
        question += f", without {listed(missing)}"
    ask(f"{question}?", ())


def _write(
    tx: Transaction, offers: Sequence[Offer], chosen: Mapping[int, Sequence[SSHKey]], site: Ssh, now: int
) -> None:
    note_change(tx)
    for number, keys in chosen.items():
        offer = offers[number]
        if offer.verdict is Verdict.CHANGED:
            names = names_of(offer.target, is_shared=is_shared(tx, offer.target, site))
            gone, left = lines_without(names, offer.other, load_lines(tx))
            forget_known_hosts(tx, gone)
            add_known_hosts(tx, left, now)
        add_known_hosts(tx, lines_of(offer.target, keys), now)


def _warn(offers: Sequence[Offer], trusted: TrustedKeys) -> None:
    """Tell of keys that were to be replaced, and are trusted by what is not this host's alone."""
    for offer in offers:
        target = offer.target
        known = trusted.of((target.key_alias, target.address), target.port).keys
        left = [key.get_fingerprint() for key in offer.other if key in known]
        if offer.verdict is Verdict.CHANGED and left:
            complain(
                f"{target.name}: {', '.join(left)} is still trusted, by a pattern, by an address that others have, "
                "or by a file in ssh.known_hosts; see: collector-cli ssh trust --list"
            )


def _rows(offer: Offer, *, is_taken: bool = False) -> list[tuple[Cell, ...]]:
    """A host's keys, the trusted ones that differ after those that it shows; its name and place once."""
    target, verdict = offer.target, offer.verdict
    first = Cell(target.name, "strong"), Cell(endpoint(target.address, target.port))
    if not offer.keys:
        return [(*first, Cell("-"), Cell("-"), Cell(_problem(offer), _STYLES[verdict]))]
    rows = [(*_key(key), _state(offer, key, is_taken=is_taken)) for key in offer.keys]
    if verdict is Verdict.CHANGED:
        what = Cell("trusted no more" if is_taken else "the trusted one", "dim")
        rows += [(*_key(key), what) for key in offer.other]
    return [(*(first if number == 0 else (Cell(""), Cell(""))), *row) for number, row in enumerate(rows)]


def _state(offer: Offer, key: SSHKey, *, is_taken: bool) -> Cell:
    """How one key stands."""
    verdict = offer.verdict
    if key in offer.trusted.revoked:
        verdict = Verdict.REVOKED
    elif key in offer.same:
        verdict = Verdict.TRUSTED
    elif is_taken:
        return Cell("trusted from now on", "ok")
    elif verdict is Verdict.CHANGED:
        types = {one.get_algorithm() for one in offer.other}
        if not offer.same or key.get_algorithm() in types:
            return Cell(_problem(offer), _STYLES[verdict])
        verdict = Verdict.NEW
    elif verdict in (Verdict.TRUSTED, Verdict.REVOKED):
        verdict = Verdict.NEW
    return Cell(verdict.value, _STYLES[verdict])


def _key(key: SSHKey) -> tuple[Cell, Cell]:
    return Cell(key.get_algorithm()), Cell(key.get_fingerprint())


def _key_json(key: SSHKey) -> dict[str, object]:
    return {"type": key.get_algorithm(), "fingerprint": key.get_fingerprint()}


def _problem(offer: Offer) -> str:
    if offer.verdict is Verdict.CHANGED:
        return f"{offer.verdict}; if this one is right: --replace"
    return offer.problem or offer.verdict.value
