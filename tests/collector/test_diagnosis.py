"""Why a host is silent: a dead host told from a cut network, by who else is heard."""

from __future__ import annotations

import math

import pytest

from collector.core.diagnosis import DiagnosisKind, Neighbour, network_of, of_no_answer, of_probe

NOW = 10_000_000
INTERVAL, ASKED = 15_000, 60_000
SILENT = NOW - 10 * INTERVAL
MISSING = SILENT + INTERVAL


def neighbour(address: str, received_at: int = SILENT, health_at: int = 0) -> Neighbour:
    return Neighbour(address, INTERVAL, received_at, health_at)


def kind(*neighbours: Neighbour, address: str = "192.0.2.7") -> DiagnosisKind:
    return of_no_answer(address, "no answer", neighbours, MISSING, NOW, ASKED).kind


def test_a_host_is_dead_while_another_of_its_network_is_heard() -> None:
    assert kind(neighbour("192.0.2.8"), neighbour("192.0.2.9", NOW - INTERVAL)) is DiagnosisKind.HOST_DEAD


def test_a_network_of_which_nobody_is_heard_is_cut_off() -> None:
    assert kind(neighbour("192.0.2.8"), neighbour("192.0.2.9")) is DiagnosisKind.NETWORK_UNREACHABLE


def test_a_neighbour_whose_agent_is_dead_but_who_answers_over_ssh_is_heard() -> None:
    assert kind(neighbour("192.0.2.8", SILENT, NOW - ASKED)) is DiagnosisKind.HOST_DEAD
    assert kind(neighbour("192.0.2.8", SILENT, MISSING - 1)) is DiagnosisKind.NETWORK_UNREACHABLE


def test_a_neighbour_that_was_heard_before_the_host_was_missed_tells_nothing() -> None:
    """Hosts that report every five minutes may all be behind the cut for long before they are missed."""
    slow = Neighbour("192.0.2.8", 300_000, MISSING - 1, 0)
    undecided = of_no_answer("192.0.2.7", "no answer", [slow], MISSING, NOW, ASKED)
    assert undecided.kind is DiagnosisKind.HOST_DEAD
    assert "was due" in undecided.evidence
    later = of_no_answer("192.0.2.7", "no answer", [slow], MISSING, NOW + 600_000, ASKED)
    assert later.kind is DiagnosisKind.NETWORK_UNREACHABLE


def test_a_network_that_is_cut_off_after_the_host_was_missed() -> None:
    later = MISSING + 2 * INTERVAL
    assert kind(neighbour("192.0.2.8", later)) is DiagnosisKind.NETWORK_UNREACHABLE


def test_one_that_is_heard_outweighs_many_that_are_not() -> None:
    """Half of the network is switched off at night."""
    others = [neighbour(f"192.0.2.{number}") for number in range(8, 50)]
    assert kind(*others, neighbour("192.0.2.99", NOW)) is DiagnosisKind.HOST_DEAD


@pytest.mark.parametrize(
    "others",
    [
        (),
        (neighbour("192.0.3.8", NOW),),
        (neighbour("192.0.2.7"),),
        (neighbour("192.0.2.8", 0),),
        (neighbour("unix:"), neighbour("web-17")),
    ],
    ids=["nobody", "another network", "itself", "never heard", "no addresses"],
)
def test_without_a_neighbour_that_could_tell_the_host_is_dead(others: tuple[Neighbour, ...]) -> None:
    assert kind(*others) is DiagnosisKind.HOST_DEAD


def test_a_name_tells_nothing_of_a_network() -> None:
    assert kind(neighbour("192.0.2.8"), address="web-17") is DiagnosisKind.HOST_DEAD


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("web-17", None),
        ("", None),
        ("unix:/run/s", None),
    ],
)
def test_neighbourhoods(address: str, network: str | None) -> None:
    assert network_of(address) == network


def test_a_boot_during_the_silence_is_part_of_the_evidence() -> None:
    def evidence(uptime: float, *, is_another_boot: bool = False) -> str:
        return of_probe("unit inactive", uptime, 120_000, is_another_boot=is_another_boot).evidence

    assert evidence(60.0).startswith("booted 1m 0s ago; unit inactive")
    assert evidence(60.0, is_another_boot=True).startswith("booted 1m 0s ago; unit inactive")
    assert evidence(600.0, is_another_boot=True).startswith("booted since it was heard; unit inactive")
    assert "booted" not in evidence(600.0)
    assert "booted" not in evidence(math.nan)


def test_evidence_is_bounded() -> None:
    assert len(of_probe("x" * 10_000, 1e9, 1, is_another_boot=False).evidence) == 2_000
