"""The output of probe.sh becomes raw readings. Pure; takes whatever bytes a machine may send.

What is malformed is left out. Time and memory are bounded by the length of the output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from fleetpulse.machine.filesystem import Mount

MAX_LINE = 4_500
"""Bytes of a line that are looked at; a path may have 4,096."""
MAX_LINES = 2_000
"""Lines of a section that are looked at."""
MAX_AGENT = 1_000
"""Characters of what is known of the agent."""
_MAX_COMPLAINT = 200
_MAX_SECTIONS = 100

_HEADER = re.compile(rb"(?m)^fleetpulse-probe (\d{1,6})\r?$")
_ESCAPE = re.compile(rb"\\([0-3][0-7][0-7])")
# The capacity and the beginning of the mount point; what has no size has no capacity, either.
_CAPACITY = re.compile(rb"(?:\d%|-) +/")
_BOOT_SECONDS = re.compile(rb"sec *= *(\d{1,12})")
_CPU_LIST = re.compile(rb"(\d{1,6})(?:-(\d{1,6}))?")


class NotAProbe(ValueError):
    """What came is not the output of the script; the message is the first line of what it is."""


class Kernel(NamedTuple):
    """What `uname` says."""

    name: str = ""
    release: str = ""
    machine: str = ""


class Space(NamedTuple):
    """The fields of `man 3 statvfs`; `f_files` is 0 where the number of inodes is not known."""

    f_frsize: int
    f_blocks: int
    f_bfree: int
    f_bavail: int
    f_files: int
    f_ffree: int


class Spaces(NamedTuple):
    """The filesystems of one kind by mount point. `problem` says why others are missing."""

    by_mount: Mapping[str, Space]
    devices: Mapping[str, str]
    problem: str = ""


class Units(NamedTuple):
    """The names of failed systemd units, unless there was a `problem`."""

    failed: tuple[str, ...] = ()
    problem: str = ""


class Readings(NamedTuple):
    """What one probe read; None for a part that is not there.

    `counters` holds the rest of each line by its first word. `network` and `disks` hold a row of
    counters by name, as in /proc/net/dev and /sys/block/*/stat. `mounts` and `facts` stay as they came,
    to be compared with the last ones before anything else is done with them.
    """

    version: int
    is_complete: bool
    kernel: Kernel
    counters: Mapping[bytes, bytes] | None
    network: Mapping[str, list[float]] | None
    disks: Mapping[str, list[float]] | None
    processes: Mapping[str, int] | None
    processes_hidden: bool
    system: bytes
    facts: bytes | None
    mounts: bytes | None
    local: Spaces | None
    remote: Spaces | None
    units: Units | None
    agent: str


def parse(output: bytes) -> Readings:
    """Raises NotAProbe if this is not the output of probe.sh; of what was cut off the rest counts."""
    header = _HEADER.search(output)
    if header is None:
        raise NotAProbe(_complaint(output))
    body = output[header.end() :]
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n")
    sections, is_complete = _sections(body)
    counters, network, disks = sections.get("counters"), sections.get("network"), sections.get("disks")
    processes, hidden = _processes(sections.get("processes"))
    return Readings(
        int(header[1]),
        is_complete,
        _kernel(sections.get("system", b"")),
        None if counters is None else _fields(counters),
        None if network is None else _rows(network, b":", 16),
        None if disks is None else _rows(disks, b" ", 11),
        processes,
        hidden,
        sections.get("system", b""),
        _whole(sections.get("facts")),
        _whole(sections.get("mounts")),
        _spaces(sections.get("local")),
        _spaces(sections.get("remote")),
        _units(sections.get("units")),
        _agent(sections.get("agent", b""), sections.get("log", b"")),
    )


def number(text: bytes | None) -> float:
    """The first word as a number; NaN if it is none, or not finite."""
    try:
        value = float(text.split(None, 1)[0]) if text else math.nan
    except (ValueError, IndexError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def numbers(text: bytes | None, count: int) -> list[float] | None:
    """The first `count` words as numbers; None if they are not all there."""
    if text is None:
        return None
    try:
        values = [float(word) for word in text.split(None, count)[:count]]
    except ValueError:
        return None
    return values if len(values) == count else None


def cpu_count(listed: bytes) -> int | None:
    """CPUs that are online, from a list such as 0-3,8; None if it is none."""
    total = 0
    for part in listed.split(b",")[:MAX_LINES]:
        bounds = _CPU_LIST.fullmatch(part.strip())
        if bounds is None:
            return None
        first = int(bounds[1])
        total += max(0, int(bounds[2] or first) - first + 1)
    return total or None


def load_averages(counters: Mapping[bytes, bytes]) -> list[float] | None:
    """Over 1, 5 and 15 minutes; BSD's sysctl puts braces around them."""
    return numbers(counters.get(b"load", b"").strip(b"{ }"), 3)


def boot_time(counters: Mapping[bytes, bytes]) -> float:
    """Seconds since the Unix epoch, from /proc/stat or BSD's kern.boottime; NaN if it is not there."""
    bsd = _BOOT_SECONDS.search(counters.get(b"boottime", b""))
    return float(bsd[1]) if bsd else number(counters.get(b"btime"))


def parse_mounts(section: bytes) -> list[Mount]:
    """The kernel's table of mounts: device, mount point and type, with octal escapes."""
    mounts = []
    for line in _lines(section):
        fields = line.split(b" ")
        if len(fields) == 3:
            device, point, fstype = (_path(_unescape(field)) for field in fields)
            mounts.append(Mount(device, point, fstype))
    return mounts


def printable(text: str, limit: int) -> str:
    """On one line and without control characters, cut to `limit` characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())[:limit]


def lines_of(section: bytes) -> Iterator[str]:
    """Decoded; what is no UTF-8 is replaced."""
    for line in _lines(section):
        yield line.decode("utf-8", "replace")


def _sections(body: bytes) -> tuple[dict[str, bytes], bool]:
    """The sections that are complete, and whether all are: a section ends where the next begins."""
    sections: dict[str, bytes] = {}
    parts = body.split(b"\n== ", _MAX_SECTIONS)[1:]
    for part in parts:
        name, _, content = part.partition(b"\n")
        if name.rstrip() == b"end":
            return sections, True
        sections.setdefault(name.decode("ascii", "replace"), content)
    if parts:
        del sections[parts[-1].partition(b"\n")[0].decode("ascii", "replace")]
    return sections, False


def _complaint(output: bytes) -> str:
    for line in output[:4096].splitlines():
        text = printable(line.decode("utf-8", "replace"), _MAX_COMPLAINT)
        if text:
            return text
    return "no output"


def _lines(section: bytes) -> list[bytes]:
    lines = section.split(b"\n", MAX_LINES)[:MAX_LINES]
    if len(section) > MAX_LINE:
        return [line for line in lines if len(line) <= MAX_LINE]
    return lines


def _whole(section: bytes | None) -> bytes | None:
    """A section that says at its end that all was read."""
    return section if section is not None and section.rstrip().endswith(b"\nall") else None


def _fields(section: bytes) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in _lines(section):
        name, _, rest = line.partition(b" ")
        fields[name] = rest
    return fields


def _rows(section: bytes, separator: bytes, count: int) -> dict[str, list[float]] | None:
    if not section.rstrip().endswith(b"all"):
        return None  # the kernel has no such file
    rows = {}
    for line in _lines(section):
        name, _, rest = line.partition(separator)
        values = numbers(rest, count)
        if values is not None:
            rows[_path(name.strip())] = values
    return rows


def _kernel(section: bytes) -> Kernel:
    words = next(lines_of(section.strip()), "").split()
    return Kernel(words[0], " ".join(words[1:-1]), words[-1]) if len(words) > 2 else Kernel(*words)


def _processes(section: bytes | None) -> tuple[dict[str, int] | None, bool]:
    if section is None:
        return None, False
    words = section.split(None, 40)[:40]
    if words == [b"hidden"]:
        return None, True
    counts = {}
    for letter, count in zip(words[::2], words[1::2], strict=False):
        if not (len(letter) <= 5 and count.isdigit() and len(count) < 10):
            return None, False
        counts[letter.decode("ascii", "replace")] = int(count)
    return counts or None, False


def _spaces(section: bytes | None) -> Spaces | None:
    if section is None:
        return None
    found: dict[str, Space] = {}
    devices: dict[str, str] = {}
    problem = "the probe could not read it"
    has_inodes = False
    for line in _lines(section):
        kind, _, rest = line.partition(b" ")
        if kind in (b"local", b"remote"):
            fields = rest.split(b" ", 6)
            if len(fields) < 7:  # its program was ended in the middle of the line
                continue
            try:
                found[_path(fields[6])] = Space(*[_integer(field) for field in fields[:6]])
            except ValueError:
                continue
        elif kind == b"status":
            problem = _problem(rest.split(None, 2))
        elif line == b"df inodes":
            has_inodes = True
        elif row := _df(line):
            point = row.mount
            if not has_inodes:
                found[point] = _from_df(row)
                devices[point] = row.device
            elif point in found:
                found[point] = found[point]._replace(f_files=row.size, f_ffree=row.available)
    return Spaces(found, devices, problem)


class _DfRow(NamedTuple):
    """A line of POSIX's `df -P`, in KiB or in inodes."""

    device: str
    size: int
    used: int
    available: int
    mount: str


def _df(line: bytes) -> _DfRow | None:
    capacity = _CAPACITY.search(line)
    if capacity is None:
        return None
    start = capacity.end() - 1
    words = line[:start].split()
    try:
        size, used, available = (_integer(word) for word in words[-4:-1])
    except ValueError:
        return None
    return _DfRow(_path(b" ".join(words[:-4])), size, used, available, _path(line[start:]))


def _from_df(row: _DfRow) -> Space:
    # A BSD counts what is used of the reserve as less than nothing available.
    return Space(1024, row.size, row.size - row.used, max(0, row.available), 0, 0)


def _problem(words: list[bytes]) -> str:
    status = words[0] if words else b""
    if status == b"timeout":
        return f"did not answer within {number(words[1]) if len(words) > 1 else math.nan:g} s"
    if status == b"stuck":
        return "not asked, as an earlier probe still hangs in it"
    return "the probe could not read it"


def _units(section: bytes | None) -> Units | None:
    if not section or section.isspace():
        return None  # no systemd
    failed: list[str] = []
    for line in _lines(section):
        words = line.split(None, 5)
        if words[:1] == [b"status"]:
            if words[1:2] == [b"0"]:
                return Units(tuple(failed))
            said = _problem(words[1:])
            return Units(problem=f"systemctl {said}" if said.startswith("did not") else "systemctl failed")
        # Newer ones put a dot, or in this locale a star, in front of what has failed.
        name = next((word for word in words[:2] if b"." in word), None)
        if name is not None and b"failed" in words:
            failed.append(printable(name.decode("utf-8", "replace"), 255))
    return Units(problem="systemctl failed")


def _agent(section: bytes, log: bytes) -> str:
    """A line about the unit, and the last lines of its log."""
    said = dict(line.partition("=")[::2] for line in lines_of(section) if "=" in line)
    load, active = said.get("LoadState", ""), said.get("ActiveState", "")
    lines: Iterable[str] = ()
    if load == "not-found":
        lines = ["there is no unit fleetpulse-agent.service"]
    elif active:
        reasons = [said["SubState"]] if said.get("SubState") not in (None, "", active) else []
        if active != "active" and said.get("Result"):
            reasons.append(f"Result={said['Result']}")
        if active != "active" and said.get("ExecMainStatus") not in (None, "", "0"):
            reasons.append(f"ExecMainStatus={said['ExecMainStatus']}")
        if said.get("NRestarts") not in (None, "", "0"):
            reasons.append(f"NRestarts={said['NRestarts']}")
        entered = said.get("ActiveEnterTimestamp" if active == "active" else "InactiveEnterTimestamp")
        since = said.get("StateChangeTimestamp") or entered or ""
        line = f"unit {active}"
        line += f" ({', '.join(reasons)})" if reasons else ""
        # "Thu 2026-11-26 00:10:02 UTC": the day of the week says nothing.
        line += f", since {since.partition(' ')[2]}" if since else ""
        lines = [line]
    shown = [printable(line, MAX_AGENT) for line in (*lines, *list(lines_of(log))[:10])]
    return "\n".join(line for line in shown if line)[:MAX_AGENT].rstrip()


def _integer(word: bytes) -> int:
    """Raises ValueError for what does not fit into 64 bits by far: floats would not hold it."""
    if len(word) > 20:
        raise ValueError("too many digits")
    return int(word)


def _unescape(field: bytes) -> bytes:
    if b"\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def _path(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
