"""The hosts of an Ansible inventory are expected; doing it again changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collector.cli.ansible_ssh import Refused
from collector.cli.change import ask, change
from collector.cli.find import describe
from collector.cli.hosts_plan import Step, Wanted, bring_about, plan
from collector.cli.inventory import Machine
from collector.cli.inventory_file import read_ansible
from collector.cli.inventory_labels import labels_of
from collector.cli.output import Cell, Page, Table, summary
from collector.cli.session import Session
from collector.cli.ssh_places import tell_of_trusted
from collector.cli.steps import names_json, refusal, tally, write_removed
from collector.cli.steps import rows as rows_of
from collector.core.render import count
from collector.store.enrolment import load_certified
from collector.store.hosts import remove_unheard
from collector.store.reading import HostLine, load_hosts
from collector.store.ssh_hosts import load_polled_numbers
from collector.store.store import Transaction
from fleetpulse.model import State


@dataclass(frozen=True)
class Surplus:
    """The hosts that the inventory does not name: those that may go, and why each of the others may not."""

    going: Sequence[HostLine] = ()
    kept: Sequence[tuple[HostLine, str]] = ()


@dataclass(frozen=True)
class Imported:
    """What was done, or would be."""

    steps: Sequence[Step]
    surplus: Surplus
    is_dry_run: bool

    @property
    def state(self) -> State:
        """Done is done."""
        return State.OK

    def page(self, rows: int | None) -> Page:
        """The counts, then each host."""
        going, kept = self.surplus.going, self.surplus.kept
        cells = rows_of(self.steps, going)
        cells += [(Cell(host.hostname, "strong"), Cell("kept"), Cell(why)) for host, why in kept]
        return [
            summary(self.state, tally(self.steps, len(going), is_dry_run=self.is_dry_run)),
            Table(("HOST", "WHAT", "CHANGES"), cells[:rows]),
        ]

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        return {
            "dry_run": self.is_dry_run,
            **names_json(self.steps, self.surplus.going),
            "kept": [host.hostname for host, _ in self.surplus.kept],
        }


def import_hosts(
    session: Session, path: Path, *, is_dry_run: bool, prune: bool, yes: bool, as_json: bool
) -> int:
    """Expect the hosts of the inventory in the file; the exit code.

    `prune`: expect no others, as far as they were never seen.
    """
    wanted = _wanted(read_ansible(path))
    surplus = Surplus()
    with session.store() as store:
        if is_dry_run or prune:
            with store.transaction(write=False) as tx:
                steps = plan(tx, wanted)
                surplus = _surplus(tx, steps) if prune else surplus
        if surplus.going and not yes and not is_dry_run:
            ask(
                f"Remove {count(len(surplus.going), 'host')} that the inventory does not name?",
                map(describe, surplus.going),
            )
        if not is_dry_run:

            def write(tx: Transaction, now: int) -> tuple[list[Step], Surplus]:
                done = bring_about(tx, wanted, now)
                return done, _prune(tx, done, surplus.going, now) if prune else surplus

            steps, surplus = change(store, write)
            if surplus.going:
                with store.transaction(write=False) as tx:
                    tell_of_trusted(tx, [host.hostname for host in surplus.going])
    return session.answer(Imported(steps, surplus, is_dry_run), as_json=as_json)


def _wanted(machines: Mapping[str, Machine]) -> list[Wanted]:
    wanted, refused = [], []
    for name, machine in machines.items():
        try:
            wanted.append(Wanted(name, machine.groups, labels_of(machine.variables)))
        except Refused as error:
            refused.append(f"{name}: {error}")
    if refused:
        raise refusal(refused)
    return wanted


def _surplus(tx: Transaction, steps: Sequence[Step]) -> Surplus:
    """The hosts that the inventory does not name. Who has reported is not forgotten along the way."""
    named = {step.host for step in steps}
    polled = load_polled_numbers(tx)
    # Certificates follow the clocks of those who check them.
    certified = load_certified(tx, time.time_ns() // 1_000_000)
    going, kept = [], []
    for host in load_hosts(tx):
        if host.host in named:
            continue
        if host.received_at:
            kept.append((host, "has reported; to forget it: collector-cli remove"))
        elif host.host in polled:
            kept.append((host, "is polled over SSH; to forget it: collector-cli ssh remove"))
        elif host.host in certified:
            kept.append((host, "is enrolled; to forget it: collector-cli remove"))
        else:
            going.append(host)
    return Surplus(going, kept)


def _prune(tx: Transaction, steps: Sequence[Step], agreed: Sequence[HostLine], now: int) -> Surplus:
    """Remove what somebody agreed to, as far as that may still go: it may have spoken meanwhile."""
    surplus = _surplus(tx, steps)
    may_go = {host.host for host in surplus.going}
    gone = remove_unheard(tx, [host.host for host in agreed if host.host in may_go])
    removed = [host for host in agreed if host.host in gone]
    write_removed(tx, removed, now)
    return Surplus(removed, surplus.kept)
