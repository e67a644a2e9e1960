"""The slow inventory: what kind of machine this is. Values change only when the machine does."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from fleetpulse.model import Facts

MAX_FACT = 4_000
"""Characters of one fact: below what the collector accepts."""
MAX_DISKS = 200

# The kernel's names of processors in OpenTelemetry's words for host.arch.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm32", "armv6l": "arm32"}
_ARCHITECTURES |= {"i386": "x86", "i486": "x86", "i586": "x86", "i686": "x86", "ppc64le": "ppc64"}
# Vendor and model, as the firmware has them, of the usual hypervisors.
_HYPERVISORS = {
    "kvm": "kvm",
    "qemu": "kvm",
    "openstack": "kvm",
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "microsoft corporation virtual machine": "hyperv",
    "xen": "xen",
    "bochs": "bochs",
    "parallels": "parallels",
    "google compute": "google",
    "amazon ec2": "aws",
    "bhyve": "bhyve",
}
# Flags in /proc/net/if_inet6 (linux/if_addr.h) of addresses that come and go by themselves:
# temporary, deprecated, tentative, and those that failed duplicate detection.
_UNSTEADY = 0x01 | 0x20 | 0x40 | 0x08


def complete(found: Mapping[str, str]) -> Facts:
    """Sorted, without what could not be found out, and none longer than the collector accepts."""
    return {name: _cut(value) for name, value in sorted(found.items()) if value}


def architecture(machine: str) -> str:
    """What `uname -m` says, in OpenTelemetry's words for host.arch."""
    return _ARCHITECTURES.get(machine, machine)


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo and, on ARM, of the board after the last."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), " ".join(value.split()))
    return fields


def parse_os_release(text: str) -> dict[str, str]:
    """From /etc/os-release (man 5 os-release)."""
    fields = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name.strip()] = value.strip().strip("\"'")
    return {
        "os.description": fields.get("PRETTY_NAME", ""),
        "os.name": fields.get("NAME", ""),
        "os.version": fields.get("VERSION_ID", ""),
    }


def parse_memory_size(text: str) -> str:
    """MemTotal of /proc/meminfo in bytes; empty if it is not there."""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return str(int(line.split()[1]) * 1024)
    return ""


def virtualization(vendor: str, model: str, has_hypervisor: bool) -> str:
    """The kind of virtual machine, "unknown" if it is one of another kind, "none" if it is none."""
    firmware = f"{vendor} {model}".lower()
    for sign, kind in _HYPERVISORS.items():
        if sign in firmware and not (kind == "aws" and "metal" in firmware):
            return kind
    return "unknown" if has_hypervisor else "none"


def steady_ipv6(if_inet6: str) -> Iterator[tuple[str, str]]:
    """(interface, address) from /proc/net/if_inet6, without the addresses that change by themselves."""
    for line in if_inet6.splitlines():
        digits, _index, _prefix, _scope, flags, interface = line.split()
        if not int(flags, 16) & _UNSTEADY:
            yield interface, str(ipaddress.IPv6Address(int(digits, 16)))


def joined_addresses(addresses: Iterable[str]) -> str:
    """Sorted by number, IPv4 first, without those that mean nothing to other machines."""
    parsed = {ipaddress.ip_address(address) for address in addresses}
    global_ones = [a for a in parsed if not (a.is_loopback or a.is_link_local or a.is_unspecified)]
    return ",".join(str(a) for a in sorted(global_ones, key=lambda a: (a.version, int(a))))


def joined_macs(addresses: Iterable[str]) -> str:
    """Sorted, in the form that OpenTelemetry asks for (IEEE RA: AC-DE-48-23-45-67)."""
    macs = {address.upper().replace(":", "-") for address in addresses}
    return ",".join(sorted(mac for mac in macs if mac.strip("0-")))


def disk(name: str, sectors: str, model: str) -> dict[str, str]:
    """Size in bytes and model of one disk; nothing of a drive without a medium."""
    # A sector is 512 bytes here, whatever the disk's own are; 0 is a drive without a medium.
    if not (sectors.isdecimal() and int(sectors)):
        return {}
    return {f"host.disk.{name}": str(int(sectors) * 512), f"host.disk.{name}.model": model}


def _cut(text: str) -> str:
    """Whole elements of a long list only: half an address would be a wrong one."""
    return text if len(text) <= MAX_FACT else text[:MAX_FACT].rpartition(",")[0] or text[:MAX_FACT]
