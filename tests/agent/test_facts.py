from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import psutil
import pytest

from agent.facts import collect_facts
from fleetpulse.convert import decode_facts, encode_facts
from fleetpulse.machine.facts import (
    joined_addresses,
    joined_macs,
    parse_cpuinfo,
    parse_memory_size,
    parse_os_release,
    steady_ipv6,
    virtualization,
)

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R)   CPU @ 2.20GHz
flags\t\t: fpu vme hypervisor

processor\t: 1
vendor_id\t: Other
"""
IF_INET6 = """\
fd000000000000000000000000000002 02 40 00 80     eth0
fd00000000000000abcdefabcdefabcd 02 40 00 01     eth0
fd000000000000000000000000000003 02 40 00 20     eth0
fd000000000000000000000000000004 02 40 00 c0     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""


def test_the_first_processor_speaks_for_all():
    fields = parse_cpuinfo(CPUINFO)
    assert fields["model name"] == "Intel(R) Xeon(R) CPU @ 2.20GHz"
    assert fields["vendor_id"] == "GenuineIntel"


def test_os_release_with_and_without_quotes():
    text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME='Debian'\nVERSION_ID=12\n# comment\n"
    assert parse_os_release(text) == {
        "os.description": "Debian GNU/Linux 12 (bookworm)",
        "os.name": "Debian",
        "os.version": "12",
    }


def test_memory_size_is_in_bytes():
    assert parse_memory_size("MemTotal:       24684084 kB\nMemFree: 1 kB\n") == str(24684084 * 1024)
    assert parse_memory_size("") == ""


@pytest.mark.parametrize(
    ("vendor", "model", "flag", "kind"),
    [
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)", True, "kvm"),
        ("VMware, Inc.", "VMware7,1", True, "vmware"),
        ("Microsoft Corporation", "Virtual Machine", True, "hyperv"),
        ("Microsoft Corporation", "Surface Pro", True, "unknown"),
        ("Amazon EC2", "m5.metal", False, "none"),
        ("", "", True, "unknown"),
        ("Dell Inc.", "PowerEdge R640", False, "none"),
    ],
)
def test_kinds_of_virtual_machines(vendor, model, flag, kind):
    assert virtualization(vendor, model, flag) == kind


def test_ipv6_addresses_that_come_and_go_are_no_facts():
    assert list(steady_ipv6(IF_INET6)) == [("eth0", "fd00::2"), ("lo", "::1")]


def test_addresses_are_sorted_and_mean_something_elsewhere():
    addresses = ["fd00::2", "10.0.0.10", "127.0.0.1", "10.0.0.9", "fe80::1", "::1", "169.254.0.1", "10.0.0.9"]
    assert joined_addresses(addresses) == "10.0.0.9,10.0.0.10,fd00::2"


def test_macs_in_the_form_of_the_conventions():
    assert joined_macs(["02:fc:00:00:00:01", "00:00:00:00:00:00", "01:fc:00:00:00:01"]) == (
        "01-FC-00-00-00-01,02-FC-00-00-00-01"
    )


def test_a_machine_from_files(tmp_path):
    for name, text in {
        "proc/cpuinfo": "processor : 0\nBogoMIPS : 1\n\nModel : Raspberry Pi 4\n",
        "proc/meminfo": "MemTotal: 1024 kB\n",
        "etc/os-release": "PRETTY_NAME=Lab\n",
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
        "sys/block/sda/size": "2048\n",
        "sys/block/sda/device/model": "SAMSUNG  MZ7\n",
        "sys/block/sr0/size": "0\n",
        "sys/block/sr0/device/model": "DVD\n",
        "sys/block/loop0/size": "99\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    facts = collect_facts(tmp_path / "proc", tmp_path / "sys", tmp_path / "etc")
    assert facts["host.cpu.model.name"] == "Raspberry Pi 4"
    assert facts["host.memory.size"] == str(1 << 20)
    assert facts["os.description"] == "Lab"
    assert facts["hw.vendor"] == "QEMU"
    assert facts["host.virtualization"] == "kvm"
    assert {k: v for k, v in facts.items() if k.startswith("host.disk.")} == {
        "host.disk.sda": "1048576",
        "host.disk.sda.model": "SAMSUNG MZ7",
    }


def test_a_machine_without_any_of_the_files_has_fewer_facts(tmp_path):
    facts = collect_facts(tmp_path, tmp_path, tmp_path)
    assert "host.memory.size" not in facts
    assert facts["os.kernel.release"] == platform.release()


def test_this_machine():
    facts = collect_facts()
    assert facts == collect_facts()
    assert list(facts) == sorted(facts)
    assert all(facts.values())
    assert facts["os.kernel.release"] == os.uname().release
    assert facts["host.cpu.logical.count"] == str(os.cpu_count())
    assert facts["host.memory.size"] == str(psutil.virtual_memory().total)
    own = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    assert {ip for ip in facts.get("host.ip", "").split(",") if ip} <= own
    for name in (path.name for path in Path("/sys/block").iterdir() if (path / "device").exists()):
        size = int(Path(f"/sys/block/{name}/size").read_text()) * 512
        assert facts.get(f"host.disk.{name}", "0") == str(size)
    assert decode_facts(encode_facts(facts).facts) == facts
    assert socket.gethostname() not in facts  # the name travels in Hello
