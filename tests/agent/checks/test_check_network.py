from __future__ import annotations

import math
import socket
from pathlib import Path

from agent.checks.network import Network, NetworkOptions
from fleetpulse.machine.network import parse, select
from fleetpulse.model import Measurement

CAPTURED = {"bytes_sent": 1, "bytes_recv": 2, "packets_sent": 3, "packets_recv": 4}
CAPTURED |= {"errin": 5, "errout": 6, "dropin": 7, "dropout": 8}


def series(name: str, direction: str, unit: str) -> Measurement:
    return Measurement(f"system.network.{name}{{network.io.direction={direction}}}", unit)


def test_received_and_sent_are_not_swapped():
    assert parse(CAPTURED) == {
        series("io", "receive", "By/s"): 2,
        series("io", "transmit", "By/s"): 1,
        series("packet.count", "receive", "{packet}/s"): 4,
        series("packet.count", "transmit", "{packet}/s"): 3,
        series("errors", "receive", "{error}/s"): 5,
        series("errors", "transmit", "{error}/s"): 6,
        series("packet.dropped", "receive", "{packet}/s"): 7,
        series("packet.dropped", "transmit", "{packet}/s"): 8,
    }


def test_virtual_interfaces_are_left_out():
    real = ["eth0", "enp3s0f1", "bond0", "br0", "wlan0", "wg0", "ib0", "eno1.20", "team0"]
    virtual = ["lo", "veth12ab", "docker0", "br-0123456789ab", "virbr0", "vnet3", "cali123", "ifb0", "sit0"]
    assert select([*real, *virtual]) == real


def test_this_machine_agrees_with_proc():
    """Real traffic over loopback, counted by the check and by the kernel."""
    check = Network(NetworkOptions(exclude=()))
    first = loopback_bytes()
    assert all(math.isnan(value) for values in check.measure_all(0.0).values() for value in values.values())
    before = loopback_bytes()
    with socket.socket(type=socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        for _ in range(50):
            sender.send(b"x" * 1000)
            receiver.recv(2000)
    after = loopback_bytes()
    readings = check.measure_all(2.0)
    assert readings.keys() == {path.name for path in Path("/sys/class/net").iterdir() if path.is_dir()}
    rate = readings["lo"][series("io", "receive", "By/s")]
    # Others may use loopback as well: what the check saw lies between what was seen around it.
    assert 50 * 1000 / 2 <= (after - before) / 2 <= rate <= (loopback_bytes() - first) / 2


def loopback_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "lo:" in line)
    return int(line.split()[1])
