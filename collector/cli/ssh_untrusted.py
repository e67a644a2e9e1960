"""Which hosts nobody vouches for."""

from __future__ import annotations

from collections.abc import Sequence

from collector.config import Ssh
from collector.ssh.target import Target
from collector.ssh.trust import TrustedKeys
from collector.store.ssh_known_hosts import load_known_hosts
from collector.store.store import Transaction


def untrusted(tx: Transaction, targets: Sequence[Target], site: Ssh) -> list[Target]:
    """Those of which neither a key nor a CA is trusted. Raises ConfigError."""
    trusted = TrustedKeys(load_known_hosts(tx), site.known_hosts)
    return [one for one in targets if trusted.of((one.key_alias, one.address), one.port).is_empty]
