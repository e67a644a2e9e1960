"""What goes through every network interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from fleetpulse.model import Measurement


def _pair(name: str, unit: str) -> tuple[Measurement, Measurement]:
    return (
        Measurement(f"{name}{{network.io.direction=receive}}", unit),
        Measurement(f"{name}{{network.io.direction=transmit}}", unit),
    )


_BYTES = _pair("system.network.io", "By/s")
_PACKETS = _pair("system.network.packet.count", "{packet}/s")
_ERRORS = _pair("system.network.errors", "{error}/s")
_DROPPED = _pair("system.network.packet.dropped", "{packet}/s")

# The fields of psutil.net_io_counters().
_FIELDS: tuple[tuple[Measurement, str], ...] = (
    *zip(_BYTES, ("bytes_recv", "bytes_sent"), strict=True),
    *zip(_PACKETS, ("packets_recv", "packets_sent"), strict=True),
    *zip(_ERRORS, ("errin", "errout"), strict=True),
    *zip(_DROPPED, ("dropin", "dropout"), strict=True),
)

# The machine itself, and what virtual machines and containers bring along and take away again.
VIRTUAL = (
    *("lo", "veth*", "docker*", "br-*", "virbr*", "vnet*", "tap*", "lxc*", "lxd*", "podman*", "cni*"),
    *("flannel*", "cali*", "cilium*", "kube-*", "nodelocaldns", "vxlan.calico", "dummy*", "ifb*"),
    *("sit[0-9]*", "tunl[0-9]*", "ip6tnl[0-9]*", "ip6_vti[0-9]*", "ip_vti[0-9]*", "gre[0-9]*"),
    *("gretap[0-9]*", "erspan[0-9]*", "ip6gre[0-9]*", "bonding_masters"),
)


def select(names: Iterable[str], exclude: tuple[str, ...] = VIRTUAL) -> list[str]:
    """The interfaces that none of the patterns in `exclude` matches."""
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in exclude)]


def parse(fields: Mapping[str, float]) -> dict[Measurement, float]:
    """The counters of one interface, from the fields of psutil.net_io_counters()."""
    return {measurement: float(fields[field]) for measurement, field in _FIELDS}
