"""Whom a poller asks, when, and in how many places at one time."""

from __future__ import annotations

import asyncio

import pytest

from collector.config import Ssh
from collector.core.diagnosis import DiagnosisKind
from collector.core.ssh_settings import SshSettings
from collector.ssh.look import Look, Policy
from collector.ssh.polled import PolledHost
from collector.ssh.roster import Roster
from collector.ssh.schedule import Schedule, next_turn
from collector.ssh.slots import Slots
from collector.ssh.target import Resolver
from collector.store.ssh_hosts import SilentHost, SshHost
from collector.store.ssh_shares import SHARES

NOW = 1_000_000_000
ALL = frozenset(range(SHARES))


def host(
    number: int, *, received_at: int = 0, problem: str = "", address: str = "192.0.2.7", **own: object
) -> SshHost:
    settings = SshSettings(**own)  # type: ignore[arg-type]
    return SshHost(
        number, f"id-{number}", f"web-{number}", address, 0, 0, True, settings, (), received_at, problem
    )


def policy(*hosts: SshHost) -> Policy:
    return Policy("v", hosts, {}, ())


def roster(*, has_credentials: bool = True, **site: object) -> Roster:
    return Roster(Resolver(Ssh(**site)), "c1", has_credentials=has_credentials)  # type: ignore[arg-type]


def look(*silent: SilentHost, shares: frozenset[int] = ALL) -> Look:
    return Look(shares, None, silent)


def silent(number: int, *, received_at: int = NOW, is_configured: bool = False, **more: object) -> SilentHost:
    one = host(number, received_at=received_at, **more)  # type: ignore[arg-type]
    return SilentHost(one._replace(is_polled=False), 0, "boot", is_configured)


def test_hosts_go_on_in_step_with_whoever_polled_them_before() -> None:
    hosts = [host(1, received_at=NOW - 10_000), host(2, received_at=NOW - 90_000), host(3)]
    moves = roster().take_polled(look(), policy(*hosts), {}, {}, NOW)
    assert moves.due[1] == 20
    assert 0 <= moves.due[2] <= 5
    assert 0 <= moves.due[3] <= 5


def test_only_what_is_ours_is_polled_and_left_when_it_is_not() -> None:
    one = roster()
    hosts = policy(host(1), host(2))
    assert set(one.take_polled(look(), hosts, {}, {}, NOW).due) == {1, 2}
    moves = one.take_polled(look(shares=frozenset({1})), hosts, {}, {}, NOW)
    assert (moves.due, moves.left) == ({}, [2])
    assert one.get(2) is None
    assert one.get(1) is not None


def test_when_a_newcomer_was_heard_is_what_the_database_says_now() -> None:
    """Another collector may have heard it after the policy was read."""
    one = roster()
    moves = one.take_polled(look(), policy(host(1, received_at=NOW - 60_000)), {}, {1: NOW - 5_000}, NOW)
    assert moves.due == {1: 25.0}
    known = one.get(1)
    assert known is not None
    assert known.heard_at == NOW - 5_000


def test_a_silent_host_that_is_polled_from_now_on_is_asked_as_that() -> None:
    one = roster()
    one.take_silent(look(silent(1)), policy())
    moves = one.take_polled(look(), policy(host(1)), {}, {}, NOW)
    assert (moves.left, list(moves.due)) == ([1], [1])
    assert one.take_silent(look(), policy()).left == []
    assert isinstance(one.get(1), PolledHost)


def test_what_is_no_longer_ours_is_left_before_anything_else() -> None:
    one = roster()
    one.take_polled(look(), policy(host(1), host(2)), {}, {}, NOW)
    one.take_silent(look(silent(3)), policy(host(1), host(2)))
    assert sorted(one.leave_others(look(shares=frozenset({1}))).left) == [2, 3]
    assert one.get(1) is not None


def test_other_settings_are_used_at_once_and_what_is_known_of_the_host_is_kept() -> None:
    one = roster()
    one.take_polled(look(), policy(host(1)), {}, {}, NOW)
    known = one.get(1)
    moves = one.take_polled(look(), policy(host(1, port=2222)), {}, {}, NOW)
    assert moves.due == {1: 0.0}
    assert one.get(1) is known
    assert known is not None
    assert known.target.port == 2222


def test_settings_that_make_no_sense_are_told_once_and_stop_no_other_host() -> None:
    one = roster()
    hosts = policy(host(1, problem="port: nonsense"), host(2))
    moves = one.take_polled(look(), hosts, {}, {}, NOW)
    assert set(moves.due) == {2}
    [(told, diagnosis)] = moves.findings
    assert (told.host, diagnosis.kind) == (1, DiagnosisKind.NOT_PROBED)
    assert "port: nonsense" in diagnosis.evidence
    assert not one.take_polled(look(), hosts, {}, {}, NOW).findings


def test_a_host_that_falls_silent_is_asked_at_once_and_left_when_it_is_heard() -> None:
    one = roster()
    assert one.take_silent(look(silent(1)), policy()).due == {1: 0.0}
    assert not one.take_silent(look(silent(1)), policy()).due
    again = one.take_silent(look(silent(1, received_at=NOW + 1)), policy())
    assert (again.left, again.due) == ([1], {1: 0.0}), "another silence is another question"
    assert one.take_silent(look(), policy()).left == [1]


@pytest.mark.parametrize(
    ("silence", "site", "why"),
    [
        (silent(1), {"fallback": False}, "fallback"),
        (silent(1, is_configured=True, fallback=False), {}, "fallback"),
        (silent(1, address="unix"), {}, "socket"),
        (silent(1, problem="nonsense"), {}, "nonsense"),
    ],
)
def test_who_is_not_to_be_asked_is_told_once_why(
    silence: SilentHost, site: dict[str, object], why: str
) -> None:
    one = roster(**site)
    moves = one.take_silent(look(silence), policy())
    assert not moves.due
    [(_, diagnosis)] = moves.findings
    assert why in diagnosis.evidence
    assert not one.take_silent(look(silence), policy()).findings


def test_without_a_key_nobody_is_asked_but_who_has_one_of_its_own() -> None:
    one = roster(has_credentials=False)
    moves = one.take_silent(look(silent(1), silent(2, is_configured=True, key="/k")), policy())
    assert set(moves.due) == {2}
    assert "ssh.keys" in moves.findings[0][1].evidence


def test_settings_of_its_own_allow_it_where_the_site_does_not() -> None:
    moves = roster(fallback=False).take_silent(look(silent(1, is_configured=True)), policy())
    assert moves.due == {1: 0.0}


def test_a_schedule_gives_each_host_once_and_the_last_word_counts() -> None:
    schedule = Schedule()
    for number, due in ((1, 3.0), (2, 1.0), (1, 2.0), (3, 9.0)):
        schedule.put(number, due)
    schedule.drop(3)
    assert schedule.next_due == 1.0
    assert schedule.take(2.5) == [2, 1]
    assert schedule.take(99.0) == []
    assert schedule.next_due is None
    assert len(schedule) == 0


@pytest.mark.parametrize(("now", "turn"), [(100.0, 130.0), (129.9, 130.0), (135.0, 160.0), (400.0, 430.0)])
def test_rounds_do_not_drift_and_missed_ones_are_not_made_up_for(now: float, turn: float) -> None:
    assert next_turn(100.0, 30.0, now) == turn


def test_suspects_fill_a_quarter_of_the_places_and_groups_what_they_may() -> None:
    async def fill() -> tuple[int, int, int]:
        slots = Slots(8)
        inside = {"suspect": 0, "good": 0, "limited": 0}
        leave = asyncio.Event()

        async def stay(kind: str) -> None:
            groups = (("lab", 3),) if kind == "limited" else ()
            async with slots.hold(groups, is_suspect=kind == "suspect"):
                inside[kind] += 1
                await leave.wait()

        tasks = [
            asyncio.create_task(stay(kind)) for kind in ["suspect"] * 20 + ["limited"] * 20 + ["good"] * 20
        ]
        for _ in range(10):
            await asyncio.sleep(0)
        seen = inside["suspect"], inside["limited"], inside["good"]
        leave.set()
        await asyncio.gather(*tasks)
        assert inside == {"suspect": 20, "good": 20, "limited": 20}
        return seen

    assert asyncio.run(fill()) == (2, 3, 3)


def test_a_group_that_is_full_of_dead_hosts_keeps_no_other_suspect_waiting() -> None:
    async def fill() -> bool:
        slots = Slots(8)
        leave = asyncio.Event()

        async def stay() -> None:
            async with slots.hold((("lab", 1),), is_suspect=True):
                await leave.wait()

        tasks = [asyncio.create_task(stay()) for _ in range(20)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(5), slots.hold((), is_suspect=True):
                return True
        finally:
            leave.set()
            await asyncio.gather(*tasks)

    assert asyncio.run(fill())
