"""What was counted, and what is told of it: a flood of refusals must not become a flood of log lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import structlog

from collector.core.pacer import Pacer

_LINES_PER_SECOND = 0.2  # of each kind
_LINES_AT_ONCE = 5

COUNTED = {
    "streams": "Streams welcomed.",
    "reports": "Reports committed, duplicates included.",
    "replaced": "Streams ended because the same host opened a newer one.",
    "throttled": "Pauses asked for because too many reports wait for the database.",
    "held": "Pauses asked for because the database does not answer.",
    "paced": "Pauses imposed on a host beyond `limits.reports_per_second`.",
    "full": "Streams ended because they had announced too many layouts; their agents open new ones.",
    "malformed": "Streams refused for a message that makes no sense or is beyond a bound.",
    "no_hello": "Streams that did not say who they are within `limits.hello_timeout`.",
    "too_many_hellos": "Streams refused to a host beyond `limits.hellos_per_minute`.",
    "too_many_streams": "Streams and health checks refused to a certificate that has eight open from one address, or 64 in all.",
    "unknown_certificate": "Streams refused to a certificate that is not known here: its host was removed, or has a newer one.",
    "revoked": "Streams ended or refused because the host's certificate was revoked.",
    "expired": "Streams ended or refused because the host's certificate has expired.",
    "wrong_host": "Streams refused to a host whose certificate names another one.",
    "contested": "Pauses asked of a machine until it is clear whether another one with its identity lives.",
    "conflict": "Streams refused to a machine whose identity another one has.",
    "renewed": "Certificates renewed.",
    "not_renewed": "Certificates not renewed; the log says why.",
    "unstorable": "Streams refused for data that the database does not take.",
    "unread": "Streams ended because their agent did not read what it was told.",
    "broken": "Streams that broke off: the agent or the network is gone, or a message is over `limits.message_size`.",
    "unauthenticated": "Connections to the report port without an accepted certificate: none, another CA's, expired, or no TLS at all.",
    "enrolled": "Machines that enrolled.",
    "enrolment_refused": "Attempts to enrol that were refused, or given up after a look at the CA certificates; each has an event or is counted in the next one's.",
    "enrolment_limited": "Attempts to enrol from an address beyond `limits.refused_enrolments_per_minute`.",
}
"""What each count means; docs/configuration.md shows the same."""

log = structlog.get_logger()


class Refusals:
    """Counts by name. What somebody did wrong is logged too, a few lines of each kind at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._pacer = Pacer(_LINES_PER_SECOND, _LINES_AT_ONCE)
        self._untold: Counter[str] = Counter()

    def tell(self, kind: str, *, host: str, peer: str, error: str) -> None:
        """Count one of `kind`; log who did it, and how many more there were since the last line."""
        self.counts[kind] += 1
        if not self._pacer.try_spend(kind, 1, self._clock()):
            self._untold[kind] += 1
            return
        more = {"not_logged": untold} if (untold := self._untold.pop(kind, 0)) else {}
        log.warning("refused", kind=kind, host=host, peer=peer, error=error, **more)
