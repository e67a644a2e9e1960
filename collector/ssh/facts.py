"""The inventory of a machine without an agent, under the same names as the agent's. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from collector.ssh.parse import Kernel, cpu_count, lines_of
from fleetpulse.machine.facts import (
    MAX_DISKS,
    architecture,
    complete,
    disk,
    joined_addresses,
    joined_macs,
    parse_cpuinfo,
    parse_memory_size,
    parse_os_release,
    steady_ipv6,
    virtualization,
)
from fleetpulse.machine.network import select
from fleetpulse.model import Facts

_MAX_NAME = 100  # characters of a device's name
_MEMORY = re.compile(r"MemTotal: +\d{1,15} kB")
_SECTORS = re.compile(r"\d{1,18}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5,31}")
_OWN_WORDS = frozenset(
    ("dmi_vendor", "dmi_model", "board", "memory", "cores", "cpus", "disk", "mac", "ip", "ip6")
)


def parse(kernel: Kernel, section: bytes) -> Facts:
    """From the section `facts` of the probe's output. What cannot be found out is left out."""
    words: dict[str, list[str]] = {}
    rest = []
    for line in lines_of(section):
        word, _, value = line.partition(" ")
        if word in _OWN_WORDS:
            words.setdefault(word, []).append(" ".join(value.split()))
        else:
            rest.append(line)
    text = "\n".join(rest)
    cpu = parse_cpuinfo(text)
    vendor, model, board = (_first(words, name) for name in ("dmi_vendor", "dmi_model", "board"))
    is_linux = kernel.name == "Linux"
    memory = _first(words, "memory")
    facts = {
        "os.type": kernel.name.lower(),
        **parse_os_release(text),
        "os.kernel.release": kernel.release,
        "host.arch": architecture(kernel.machine),
        "host.cpu.model.name": cpu.get("model name") or cpu.get("Model") or board,
        "host.cpu.vendor.id": cpu.get("vendor_id", ""),
        "host.cpu.logical.count": str(cpu_count(_first(words, "cpus").encode()) or ""),
        "host.cpu.physical.count": _cores(_first(words, "cores"), rest),
        "host.memory.size": parse_memory_size(memory) if _MEMORY.fullmatch(memory) else "",
        "host.virtualization": virtualization(vendor, model, "flags" in cpu) if is_linux else "",
        "hw.vendor": vendor,
        "hw.model": model,
        **_disks(words.get("disk", [])),
        **_addresses(words),
    }
    return complete(facts)


def _first(words: dict[str, list[str]], name: str) -> str:
    """The first value under a word; empty if there is none."""
    return words.get(name, [""])[0]


def _cores(counted: str, lines: list[str]) -> str:
    """Cores; where the kernel shows no topology, the cores of each package in /proc/cpuinfo."""
    if _SECTORS.fullmatch(counted) and int(counted):
        return str(int(counted))
    packages: dict[str, int] = {}
    package = ""
    for line in lines:
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "physical id":
            package = value
        elif name == "cpu cores" and _SECTORS.fullmatch(value):
            packages[package] = int(value)
    return str(sum(packages.values()) or "")


def _disks(lines: list[str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for line in lines[:MAX_DISKS]:
        name, _, rest = line.partition(" ")
        sectors, _, model = rest.partition(" ")
        if _SECTORS.fullmatch(sectors) and 0 < len(name) <= _MAX_NAME:
            facts |= disk(name, sectors, model)
    return facts


def _addresses(words: dict[str, list[str]]) -> dict[str, str]:
    pairs = [line.partition(" ")[::2] for line in words.get("ip", [])]
    pairs += [pair for line in words.get("ip6", []) for pair in _ipv6(line)]
    macs = [line.partition(" ")[::2] for line in words.get("mac", [])]
    wanted = set(select({name for name, _ in (*pairs, *macs)}))
    return {
        "host.ip": joined_addresses(a for name, a in pairs if name in wanted and _is_address(a)),
        "host.mac": joined_macs(a for name, a in macs if name in wanted and _MAC.fullmatch(a)),
    }


def _ipv6(line: str) -> Iterator[tuple[str, str]]:
    try:
        yield from steady_ipv6(line)
    except ValueError:
        return


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
