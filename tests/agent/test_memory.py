from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agent.memory import Mapping, unchanged
from bench.usage import memory

SMAPS = """\
55d0c0e00000-55d0c0e01000 r--p 00000000 fe:00 1311 /usr/bin/python3.11
Size:                  4 kB
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55d0c0e01000-55d0c0e02000 r-xp 00001000 fe:00 1311 /usr/bin/python3.11
Rss:                   4 kB
Anonymous:             0 kB
55d0c0e03000-55d0c0e04000 r--p 00002000 fe:00 1311 /usr/bin/python3.11
Rss:                   4 kB
Anonymous:             4 kB
55d0c0e04000-55d0c0e05000 rw-p 00003000 fe:00 1311 /usr/bin/python3.11
Rss:                   4 kB
Anonymous:             0 kB
7f10aa000000-7f10aa100000 r-xp 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
7f10ab000000-7f10ab001000 r--s 00000000 fe:00 99 /var/lib/fleetpulse-agent/spool.db-shm
Anonymous:             0 kB
7f10ac000000-7f10ac002000 r-xp 00000000 fe:00 2117 /opt/with blank/cygrpc.so (deleted)
Anonymous:             0 kB
7ffd3bb3c000-7ffd3bb3e000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
"""

PROGRAM = """
import sys
from agent import memory
memory.use_one_heap()
import sqlite3
code = memory.LoadedCode()
print(flush=True), sys.stdin.readline()
code.give_back()
print(flush=True), sys.stdin.readline()
print(sqlite3.connect(":memory:").execute("SELECT 6 * 7").fetchone()[0])
"""


def test_only_what_is_as_in_its_file_and_nobody_writes_is_given_back() -> None:
    assert list(unchanged(SMAPS.splitlines())) == [
        Mapping(0x55D0C0E00000, 0x55D0C0E01000),
        Mapping(0x55D0C0E01000, 0x55D0C0E02000),
        Mapping(0x7F10AC000000, 0x7F10AC002000),
    ]


def test_a_program_is_smaller_afterwards_and_works() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdout.readline()
        before = memory(program.pid)
        program.stdin.write("\n")
        program.stdout.readline()
        after = memory(program.pid)
        program.stdin.write("\n")
        assert program.stdout.readline() == "42\n"
    assert program.returncode == 0
    assert after.rss < before.rss - 2_000_000
