"""The slow inventory: what kind of machine this is. Values change only when the machine does."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from agent.checks.disk import is_physical
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


def collect_facts(proc: Path = Path("/proc"), sys: Path = Path("/sys"), etc: Path = Path("/etc")) -> Facts:
    """The machine under OpenTelemetry's resource names, sorted; what cannot be found out is left out.

    Sizes are in bytes. Reads a few small files; not for every report.
    """
    cpu = parse_cpuinfo(_head(proc / "cpuinfo"))
    vendor, model = _line(sys / "class/dmi/id/sys_vendor"), _line(sys / "class/dmi/id/product_name")
    system = os.uname()
    facts = {
        "os.type": "linux",
        **parse_os_release(_head(etc / "os-release")),
        "os.kernel.release": system.release,
        "host.arch": architecture(system.machine),
        "host.cpu.model.name": cpu.get("model name")
        or cpu.get("Model")
        or _line(sys / "firmware/devicetree/base/model"),
        "host.cpu.vendor.id": cpu.get("vendor_id", ""),
        "host.cpu.logical.count": str(os.cpu_count() or ""),
        "host.cpu.physical.count": str(psutil.cpu_count(logical=False) or ""),
        "host.memory.size": parse_memory_size(_head(proc / "meminfo")),
        "host.virtualization": virtualization(vendor, model, "hypervisor" in cpu.get("flags", "").split()),
        "hw.vendor": vendor,
        "hw.model": model,
        **_disks(sys / "block"),
        **_addresses(_head(proc / "net/if_inet6", size=1 << 20)),
    }
    return complete(facts)


def _disks(block_devices: Path) -> dict[str, str]:
    if not block_devices.is_dir():
        return {}
    facts: dict[str, str] = {}
    names = sorted(path.name for path in block_devices.iterdir())
    for name in [name for name in names if is_physical(block_devices, name)][:MAX_DISKS]:
        device = block_devices / name
        facts |= disk(name, _line(device / "size"), _line(device / "device/model"))
    return facts


def _addresses(if_inet6: str) -> dict[str, str]:
    interfaces = psutil.net_if_addrs()
    names = set(select(interfaces))
    families: Mapping[int, list[str]] = {socket.AF_INET: [], psutil.AF_LINK: []}
    for name in names:
        for address in interfaces[name]:
            if address.family in families:
                families[address.family].append(address.address)
    ipv6 = [address for name, address in steady_ipv6(if_inet6) if name in names]
    return {
        "host.ip": joined_addresses([*families[socket.AF_INET], *ipv6]),
        "host.mac": joined_macs(families[psutil.AF_LINK]),
    }


def _head(path: Path, size: int = 8192) -> str:
    # The first processor is enough: /proc/cpuinfo of a large server takes the kernel milliseconds.
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return " ".join(_head(path).replace("\0", " ").split())
