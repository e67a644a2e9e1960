"""What tells this machine from a copy of its disk.

Only what every user may read, so that `fleet-agent enroll` as root and the agent as somebody else find the
same: the addresses that the network devices were made with, and the serial number that boards without
firmware tables have. The serial numbers of the firmware tables (DMI) are root's alone.

Counted are devices that are part of the machine. Left out: bridges, bonds, tunnels and the like, which have
no device; virtual functions and whatever else gets another address at each start; and what hangs on USB, as
docking stations do, unless it is all there is.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import hmac
import socket
import struct
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_APP_ID = uuid.UUID("5f1f8c1e-3a5b-4f0e-9f56-2a4c3d7b9e60")
_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_GPERMADDR = 0x20  # linux/ethtool.h; anybody may ask
_ADDRESS_IS_THE_DEVICES_OWN = "0"  # NET_ADDR_PERM in linux/netdevice.h
_MAX_ADDRESS = 32  # bytes


class NetworkDevice(NamedTuple):
    """`address` is the one that it was made with, such as "52:54:00:12:34:56"."""

    address: str
    is_usb: bool


def hardware_id(devices: Iterable[NetworkDevice], board_serial: str) -> str:
    """A hash of what identifies this hardware, for this application alone; empty if nothing does.

    HMAC-SHA256 keyed by the values over the application's id, cut to 128 bits and marked as a version 4
    UUID, as `fleetpulse.machine.fingerprint` does it. Nothing can be concluded from it.
    """
    known = sorted({device for device in devices if device.address.strip("0:")})
    built_in = [device.address for device in known if not device.is_usb]
    values = built_in or [device.address for device in known]
    if board_serial:
        values = [*values, f"serial {board_serial}"]
    if not values:
        return ""
    digest = hmac.new("\n".join(values).encode(), _APP_ID.bytes, hashlib.sha256).digest()
    return uuid.UUID(bytes=digest[:16], version=4).hex


def this_hardware(sys: Path = Path("/sys")) -> str:
    """`hardware_id` of this machine."""
    return hardware_id(
        _network_devices(sys / "class/net"), _line(sys / "firmware/devicetree/base/serial-number")
    )


def _network_devices(folder: Path) -> Iterator[NetworkDevice]:
    try:
        interfaces = sorted(folder.iterdir())
    except OSError:
        return
    for interface in interfaces:
        device = interface / "device"
        if not device.exists() or (device / "physfn").exists():
            continue
        address = _permanent_address(interface.name)
        if not address and _line(interface / "addr_assign_type") == _ADDRESS_IS_THE_DEVICES_OWN:
            address = _line(interface / "address")
        yield NetworkDevice(address, "/usb" in str(device.resolve()))


def _permanent_address(interface: str) -> str:
    """The address that a network device was made with, whatever it uses now; empty if it does not say."""
    answer = array.array("B", struct.pack("II32s", _ETHTOOL_GPERMADDR, _MAX_ADDRESS, b""))
    request = struct.pack("16sP16x", interface.encode(), answer.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    except OSError:
        return ""
    _, size, address = struct.unpack("II32s", answer.tobytes())
    found = address[: min(size, _MAX_ADDRESS)]
    return found.hex(":") if any(found) else ""


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip(" \0\n")
    except (OSError, UnicodeDecodeError):
        return ""
