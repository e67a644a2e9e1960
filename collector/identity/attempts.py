"""How often machines were refused: who has to wait, and which refusals are worth telling."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable

from collector.core.pacer import Pacer

_TOLD_PER_SECOND = 0.1  # of each kind
_TOLD_AT_ONCE = 10
_ASKED_PER_SECOND = 100  # more than a rollout behind one address
_ASKED_AT_ONCE = 1_000
_IPV6_PREFIX = 64  # bits; a single machine may have all the addresses behind them


class Attempts:
    """Refused attempts, by address. `per_minute` is how many an address may have; after a rest twice as many."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        rate = per_minute / 60
        self._clock = clock
        self._refused = Pacer(rate, max(1.0, 2 * per_minute))
        self._undecided: Counter[str] = Counter()
        self._asked = Pacer(_ASKED_PER_SECOND, _ASKED_AT_ONCE)
        self._told = Pacer(_TOLD_PER_SECOND, _TOLD_AT_ONCE)
        self._untold: Counter[str] = Counter()

    def begin(self, address: str) -> float:
        """How many seconds this address has to wait before it is listened to; 0: the attempt may begin.

        Each that begins counts as refused until `end` says otherwise: of many at once, no more are heard
        than may be refused.
        """
        network, now = _network(address), self._clock()
        wait = self._refused.spend(network, 0, now)
        if wait == 0:
            self._refused.spend(network, 1, now)
            self._undecided[network] += 1
        return wait

    def end(self, address: str, *, refused: bool) -> None:
        """An attempt that had begun has ended."""
        network = _network(address)
        self._undecided[network] -= 1
        if not self._undecided[network]:
            del self._undecided[network]
        if not refused:
            self._refused.spend(network, -1, self._clock())

    def is_undecided(self, address: str) -> bool:
        """Whether an attempt of this address may end soon without being refused."""
        return _network(address) in self._undecided

    def may_ask(self, address: str) -> bool:
        """Whether this address asks for what is public at a pace that even many machines behind it keep."""
        return self._asked.try_spend(_network(address), 1, self._clock())

    def tell(self, kind: str) -> int | None:
        """Whether to tell of a refusal of that kind: None: no; else how many were not told before it."""
        if not self._told.try_spend(kind, 1, self._clock()):
            self._untold[kind] += 1
            return None
        return self._untold.pop(kind, 0)


def _network(address: str) -> str:
    """What counts as one address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a unix socket
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _IPV6_PREFIX), strict=False))
