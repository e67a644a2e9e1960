from __future__ import annotations

import math
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.ssh.parse import (
    MAX_AGENT,
    MAX_LINE,
    Kernel,
    NotAProbe,
    Space,
    boot_time,
    cpu_count,
    load_averages,
    number,
    numbers,
    parse,
    parse_mounts,
    printable,
)
from collector.ssh.probe import OUTPUT_LIMIT
from fleetpulse.machine.filesystem import Mount
from tests.collector.ssh.captured import PROBES, captured


def probe(*sections: str) -> bytes:
    return ("fleetpulse-probe 1\n" + "".join(f"\n== {section}\n" for section in (*sections, "end"))).encode()


@pytest.mark.parametrize("name", PROBES)
def test_every_captured_output_is_complete(name):
    readings = parse(captured(name))
    assert readings.is_complete
    assert readings.version == 1
    assert readings.kernel.name in ("Linux", "FreeBSD", "Darwin")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("switch", "exec /bin/sh -s"),
        ("nologin", "This account is currently not available."),
    ],
)
def test_what_is_no_probe_is_quoted(name, complaint):
    with pytest.raises(NotAProbe) as raised:
        parse(captured(name))
    assert str(raised.value) == complaint


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (b"", "no output"),
        (b"\n \r\n\t\n", "no output"),
        (b"\x1b[31mred\x07\xff\n", "[31mred \ufffd"),
        (b"x" * 10_000, "x" * 200),
        (b"echo fleetpulse-probe 1\n", "echo fleetpulse-probe 1"),
    ],
)
def test_a_complaint_is_short_and_printable(output, complaint):
    with pytest.raises(NotAProbe) as raised:
        parse(output)
    assert str(raised.value) == complaint


def test_noise_before_the_header_and_the_lines_of_a_terminal():
    noisy, plain = parse(captured("noisy_crlf")), parse(captured("debian8"))
    assert noisy == plain


def test_raw_readings():
    readings = parse(captured("rhel7"))
    assert readings.kernel == Kernel("Linux", "3.10.0-1160.el7.x86_64", "x86_64")
    assert readings.counters is not None
    assert readings.counters[b"btime"] == b"1787011788"
    assert readings.network is not None
    assert list(readings.network) == ["em1", "lo", "em2"]
    assert readings.network["em1"][:4] == [98123456789, 812345678, 0, 17]
    assert readings.disks is not None
    assert readings.disks["sda"][9] == 12345678
    assert readings.processes == {"R": 2, "S": 309, "D": 1, "I": 0, "Z": 1, "T": 0, "X": 0, "?": 0}
    assert readings.local is not None
    assert readings.local.by_mount["/srv/lab data"] == Space(
        4096, 131006720, 65503360, 65503360, 262144000, 262100000
    )
    assert readings.remote is not None
    assert list(readings.remote.by_mount) == ["/home"]
    assert readings.units is not None
    assert readings.units.failed == ("kdump.service", "network.service")


def test_what_df_says_where_there_is_no_better():
    local = parse(captured("freebsd14")).local
    assert local is not None
    assert local.by_mount["/"] == Space(1024, 47534284, 45521940, 45521940, 0, 0)
    assert local.devices["/"] == "zroot/ROOT/default"
    assert local.by_mount["/backup"].f_bavail == 0  # the reserve is in use
    macos = parse(captured("macos")).local
    assert macos is not None
    assert macos.devices["/System/Volumes/Data/home"] == "map auto_home"


def test_inodes_of_df():
    section = "df\n/dev/a b 100 60 40 60% /x y\n\ndf inodes\n/dev/a b 10 3 7 30% /x y\n/dev/c 1 1 0 100% /z"
    local = parse(probe(f"local\n{section}\nstatus 0 2")).local
    assert local is not None
    assert local.by_mount == {"/x y": Space(1024, 100, 40, 40, 10, 7)}


def test_mounts_with_escapes():
    section = rb"""/dev/a /srv/a\040b\134c ext4
none /broken
s:/x /caf\303\251 nfs4
all"""
    assert parse_mounts(section) == [
        Mount("/dev/a", "/srv/a b\\c", "ext4"),
        Mount("s:/x", "/café", "nfs4"),
    ]


@pytest.mark.parametrize(
    ("listed", "count"),
    [(b"0", 1), (b"0-3", 4), (b"0-1,4,6-7", 5), (b"", None), (b"3-0", None), (b"x", None), (b"0-", None)],
)
def test_cpus_that_are_online(listed, count):
    assert cpu_count(listed) == count


def test_numbers_are_finite_or_not_at_all():
    assert number(b" 12 kB") == 12
    for text in (None, b"", b" ", b"x", b"nan", b"inf", b"1e999", b"9" * 400):
        assert math.isnan(number(text))
    assert numbers(b"1 2 3", 2) == [1, 2]
    assert numbers(b"1 x", 2) is None
    assert numbers(b"1", 2) is None


def test_words_of_other_systems():
    counters = {b"load": b"{ 0.35 0.28 0.25 }", b"boottime": b"{ sec = 1795050000, usec = 1 } Thu"}
    assert load_averages(counters) == [0.35, 0.28, 0.25]
    assert boot_time(counters) == 1795050000
    assert math.isnan(boot_time({}))


@pytest.mark.parametrize("name", ["rhel7", "freebsd14", "busybox_router"])
def test_a_section_counts_only_if_it_is_whole(name):
    """Cut after every byte: what is read is what was there before the cut, and never more than that."""
    output = captured(name)
    whole = parse(output)
    for end in range(len("fleetpulse-probe 1\n"), len(output)):
        cut = parse(output[:end])
        for field in (
            "counters",
            "network",
            "disks",
            "processes",
            "mounts",
            "local",
            "remote",
            "facts",
            "units",
        ):
            assert getattr(cut, field) in (None, getattr(whole, field)), field
        assert cut.is_complete <= (output[:end].rstrip() == output.rstrip())


def test_a_newer_version_with_more_sections():
    output = captured("debian8").replace(b"fleetpulse-probe 1", b"fleetpulse-probe 7")
    output = output.replace(b"\n== network", b"\n== gpus\nx 1 2\n\n== network")
    assert parse(output) == parse(captured("debian8"))._replace(version=7)


def test_the_first_section_of_a_name_counts_and_nothing_after_the_end():
    readings = parse(probe("processes\nR 1", "processes\nR 2", "end\n\n== units\nstatus 1 2"))
    assert readings.processes == {"R": 1}
    assert readings.units is None


@pytest.mark.parametrize(
    ("section", "failed", "problem"),
    [
        ("a.service loaded failed failed A\n\nstatus 0 2", ("a.service",), ""),
        ("* a@1.timer loaded failed failed A", (), "systemctl failed"),
        ("* a@1.timer loaded failed failed A\nstatus 0 2", ("a@1.timer",), ""),
        ("Warning: 1.5 units\nstatus 0 2", (), ""),
        ("status 1 2", (), "systemctl failed"),
        ("status timeout 2", (), "systemctl did not answer within 2 s"),
    ],
)
def test_failed_units(section, failed, problem):
    units = parse(probe(f"units\n{section}")).units
    assert units is not None
    assert (units.failed, units.problem) == (failed, problem)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("", ""),
        ("LoadState=not-found\nActiveState=inactive", "there is no unit fleetpulse-agent.service"),
        (
            (
                "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\n"
                "ActiveEnterTimestamp=Thu 2026-11-26 00:10:02 CET\nInactiveEnterTimestamp="
            ),
            "unit active (running), since 2026-11-26 00:10:02 CET",
        ),
        ("ActiveState=failed\nSubState=failed\nResult=exit-code", "unit failed (Result=exit-code)"),
    ],
)
def test_what_is_known_of_the_agent(section, text):
    assert parse(probe(f"agent\n{section}")).agent == text


def test_what_is_known_of_a_killed_agent():
    assert parse(captured("rhel7")).agent.splitlines() == [
        "unit failed (Result=signal, ExecMainStatus=9, NRestarts=5), since 2026-11-26 00:10:02 UTC",
        "fleetpulse-agent.service: main process exited, code=killed, status=9/KILL",
        "Unit fleetpulse-agent.service entered failed state.",
        "fleetpulse-agent.service failed.",
    ]


def test_the_log_of_the_agent_is_bounded_and_printable():
    log = "\x1b[2J" + "é" * 2_000 + "\n" + "more\n" * 500
    agent = parse(probe(f"log\n{log}")).agent
    assert len(agent) <= MAX_AGENT
    assert all(line.isprintable() for line in agent.splitlines())


def test_printable_is_one_line():
    assert printable(" a\r\n\x00b ", 10) == "a b"
    assert printable("abc", 2) == "ab"


LONGEST = "9" * (OUTPUT_LIMIT - 100)


@pytest.mark.parametrize(
    "section",
    [
        f"counters\ncpu {LONGEST}",
        f"local\nlocal {LONGEST} 1 1 1 1 1 /",
        f"local\n{' ' * (OUTPUT_LIMIT - 100)}",
        "local\n" + (" " * (MAX_LINE - 1) + "\n") * 50,
        "local\n" + ("a 1 2 3 4% /" + "x" * 80 + "\n") * 2_500,
        "counters\n" + (f"x {'9' * 4_000}\n") * 60,
        "network\n" + "a: " + "1 " * 100_000 + "\nall",
        "mounts\n" + "\\040" * 60_000 + " / x\nall",
        "\n== ".join(["processes"] * 40_000),
        "agent\n" + "a=b\n" * 60_000,
        "fleetpulse-probe 1" * 10_000,
    ],
    ids=lambda section: section[:20],
)
def test_the_largest_output_takes_milliseconds(section):
    output = probe(section)
    start = time.process_time()
    readings = parse(output)
    assert time.process_time() - start < 0.25
    assert readings.counters is None or all(len(value) <= MAX_LINE for value in readings.counters.values())


@given(st.binary(max_size=2_000))
@example(b"fleetpulse-probe 1")
@example(b"fleetpulse-probe 1\n\n== end")
@example(b"fleetpulse-probe 1\n\n== \n\n== \n")
def test_any_bytes(output):
    try:
        parse(output)
    except NotAProbe as error:
        complaint = str(error)
    else:
        complaint = "none"
    assert 0 < len(complaint) <= 200
    assert complaint.isprintable()


@given(
    st.lists(st.binary(max_size=60), max_size=20), st.sampled_from(["counters", "local", "units", "facts"])
)
def test_any_lines_in_a_section(lines, name):
    parse(b"fleetpulse-probe 1\n\n== " + name.encode() + b"\n" + b"\n".join(lines) + b"\n\n== end\n")


def test_a_line_of_a_filesystem_that_was_cut_off_in_the_middle():
    """Its program was ended because one of many mounts hangs."""
    output = (
        b"fleetpulse-probe 1\n== local\nlocal 4096 10 5 5 9 9 /\nlocal 4096 12\nstatus timeout 2\n== end\n"
    )
    readings = parse(output)
    assert readings.local is not None
    assert list(readings.local.by_mount) == ["/"]
