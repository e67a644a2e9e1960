"""What goes through every network interface."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import psutil

from agent.checks import CheckOptions, TableCheck, check
from agent.checks.rates import TableRates
from agent.outcome import Values
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

# The machine itself, and what virtual machines and containers bring along and take away again.
_VIRTUAL = (
    *("lo", "veth*", "docker*", "br-*", "virbr*", "vnet*", "tap*", "lxc*", "lxd*", "podman*", "cni*"),
    *("flannel*", "cali*", "cilium*", "kube-*", "nodelocaldns", "vxlan.calico", "dummy*", "ifb*"),
    *("sit[0-9]*", "tunl[0-9]*", "ip6tnl[0-9]*", "ip6_vti[0-9]*", "ip_vti[0-9]*", "gre[0-9]*"),
    *("gretap[0-9]*", "erspan[0-9]*", "ip6gre[0-9]*", "bonding_masters"),
)


class NetworkOptions(CheckOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which interfaces are left out."""

    exclude: tuple[str, ...] = _VIRTUAL
    """Patterns of interface names such as "eth0"."""


@check("network", NetworkOptions)
class Network(TableCheck):
    """An instance per interface."""

    def __init__(self, options: NetworkOptions) -> None:
        self._exclude = options.exclude
        self._rates = TableRates()

    def measure_all(self, now: float) -> Mapping[str, Values]:
        """Every interface's rates."""
        # nowrap would make psutil add up counters that went backwards instead of showing that.
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        names = select(counters, self._exclude)
        return self._rates.update(now, {name: parse(counters[name]._asdict()) for name in names})


def select(names: Mapping[str, object], exclude: tuple[str, ...]) -> list[str]:
    """The interfaces that none of the patterns in `exclude` matches."""
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in exclude)]


def parse(fields: Mapping[str, float]) -> dict[Measurement, float]:
    """The counters of one interface, from the fields of psutil.net_io_counters()."""
    counters = {
        _BYTES: ("bytes_recv", "bytes_sent"),
        _PACKETS: ("packets_recv", "packets_sent"),
        _ERRORS: ("errin", "errout"),
        _DROPPED: ("dropin", "dropout"),
    }
    return {
        measurement: float(fields[field])
        for pair, names in counters.items()
        for measurement, field in zip(pair, names, strict=True)
    }
