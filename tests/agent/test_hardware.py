from __future__ import annotations

import os
import uuid
from pathlib import Path

from agent.hardware import NetworkDevice, hardware_id, this_hardware

ETHERNET = NetworkDevice("52:54:00:12:34:56", is_usb=False)
WIRELESS = NetworkDevice("a0:b1:c2:d3:e4:f5", is_usb=False)
DOCK = NetworkDevice("00:e0:4c:68:00:01", is_usb=True)


def test_it_is_the_same_in_any_order_and_with_a_dock() -> None:
    alone = hardware_id([ETHERNET, WIRELESS], "")
    assert uuid.UUID(alone).version == 4
    assert alone == hardware_id([WIRELESS, DOCK, ETHERNET, ETHERNET], "")
    assert "5254" not in alone


def test_it_is_another_for_another_machine() -> None:
    machines = [
        hardware_id([ETHERNET], ""),
        hardware_id([WIRELESS], ""),
        hardware_id([ETHERNET, WIRELESS], ""),
        hardware_id([DOCK], ""),
        hardware_id([ETHERNET], "10000000abcdef01"),
        hardware_id([], "10000000abcdef01"),
    ]
    assert len(set(machines)) == len(machines)


def test_nothing_known_is_empty() -> None:
    assert hardware_id([], "") == ""
    assert hardware_id([NetworkDevice("", False), NetworkDevice("00:00:00:00:00:00", False)], "") == ""


def interface(sys: Path, name: str, address: str, assign_type: str = "0", device: str = "pci0/eth") -> Path:
    folder = sys / "class/net" / name
    folder.mkdir(parents=True)
    (folder / "address").write_text(f"{address}\n")
    (folder / "addr_assign_type").write_text(f"{assign_type}\n")
    if device:
        (sys / "devices" / device / name).mkdir(parents=True)
        (folder / "device").symlink_to(sys / "devices" / device / name)
    return folder


def test_what_is_read_of_a_machine(tmp_path: Path) -> None:
    interface(tmp_path, "no-such-0", ETHERNET.address)
    only = hardware_id([ETHERNET], "")
    assert this_hardware(tmp_path) == only
    interface(tmp_path, "no-such-br", "02:42:00:00:00:01", device="")
    interface(tmp_path, "no-such-random", "5e:00:00:00:00:01", assign_type="1")
    interface(tmp_path, "no-such-dock", DOCK.address, device="pci0/usb1/1-1")
    virtual = interface(tmp_path, "no-such-vf", "aa:00:00:00:00:01")
    (virtual / "device" / "physfn").mkdir()
    assert this_hardware(tmp_path) == only
    interface(tmp_path, "no-such-wlan", WIRELESS.address)
    assert this_hardware(tmp_path) == hardware_id([ETHERNET, WIRELESS], "")
    serial = tmp_path / "firmware/devicetree/base/serial-number"
    serial.parent.mkdir(parents=True)
    serial.write_bytes(b"10000000abcdef01\0")
    assert this_hardware(tmp_path) == hardware_id([ETHERNET, WIRELESS], "10000000abcdef01")
    assert this_hardware(tmp_path / "nothing") == ""


def test_this_machine_is_the_same_twice_and_for_every_user() -> None:
    here = this_hardware()
    assert here == this_hardware()
    if os.geteuid() != 0:
        return
    os.seteuid(65534)
    try:
        assert this_hardware() == here
    finally:
        os.seteuid(0)
