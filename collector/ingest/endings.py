"""Why the collector ends a stream, in the words that its agent gets."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from collector.ingest.items import HelloNeeded, HelloRefused
from collector.store.errors import StoreError, StoreRefused
from fleetpulse.convert import WireError


@dataclass(frozen=True, slots=True)
class Ending:
    """Why we end a stream, for its agent. `kind` is what is counted; empty: it is nobody's fault."""

    code: StatusCode
    text: str
    kind: str = ""
    host: str = ""


class Refused(Exception):
    """A stream is not welcome."""

    def __init__(self, code: StatusCode, text: str, kind: str = "", host: str = ""):
        super().__init__(text)
        self.ending = Ending(code, text, kind, host)


class TooManyLayouts(Exception):
    """More layouts were announced at once than are kept for one stream; fewer reports at once may do."""


ENDED = {
    "replaced": Ending(StatusCode.ABORTED, "replaced by a newer stream of the same host"),
    "unread": Ending(StatusCode.ABORTED, "does not read what it is told", "unread"),
    "revoked": Ending(StatusCode.UNAUTHENTICATED, "this host's certificate was revoked", "revoked"),
    "expired": Ending(StatusCode.UNAUTHENTICATED, "this host's certificate has expired", "expired"),
}
"""Why we ended an open session, by what `Session.ended` says."""

_REFUSED_HELLOS = {
    "unknown_certificate": StatusCode.UNAUTHENTICATED,
    "revoked": StatusCode.UNAUTHENTICATED,
    "conflict": StatusCode.ALREADY_EXISTS,
}


def ending_by(error: Exception, host: str) -> Ending | None:
    """The ending that an error calls for on a stream of `host`; None: it is a defect of ours."""
    match error:
        case Refused():
            return error.ending
        case HelloRefused():
            return Ending(_REFUSED_HELLOS[error.kind], str(error), error.kind, host)
        case WireError():
            return Ending(StatusCode.INVALID_ARGUMENT, str(error), "malformed")
        case HelloNeeded():
            return Ending(StatusCode.ABORTED, str(error))
        case TooManyLayouts():
            # Not the reports' fault: an agent sends them one by one now, and drops none.
            return Ending(StatusCode.RESOURCE_EXHAUSTED, str(error))
        case StoreRefused():
            return Ending(StatusCode.INVALID_ARGUMENT, f"cannot be stored: {error}", "unstorable")
        case StoreError():
            return Ending(StatusCode.UNAVAILABLE, "the collector cannot reach its database")
    return None
