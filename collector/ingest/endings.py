"""Why the collector ends a stream, in the words that its agent gets."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from grpc import StatusCode

from collector.ingest.items import ENROL_AGAIN, HelloNeeded, HelloRefused
from collector.store.errors import StoreError, StoreRefused
from fleetpulse.convert import WireError
from fleetpulse.rpc import ServedStream

_ABORT_PATIENCE = 2.0  # seconds that we wait for a peer to take a refusal


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
    "revoked": Ending(
        StatusCode.UNAUTHENTICATED, f"this host's certificate was revoked; {ENROL_AGAIN}", "revoked"
    ),
    "expired": Ending(
        StatusCode.UNAUTHENTICATED, f"this host's certificate has expired; {ENROL_AGAIN}", "expired"
    ),
}
"""Why we ended an open session, by what `Session.ended` says."""

_REFUSED_HELLOS = {
    "unknown_certificate": StatusCode.UNAUTHENTICATED,
    "revoked": StatusCode.UNAUTHENTICATED,
    "expired": StatusCode.UNAUTHENTICATED,
    "conflict": StatusCode.ALREADY_EXISTS,
}


def ending_by(error: Exception) -> Ending | None:
    """The ending that an error calls for; None: it is a defect of ours."""
    match error:
        case Refused():
            return error.ending
        case HelloRefused():
            return Ending(_REFUSED_HELLOS[error.kind], str(error), error.kind, error.host)
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


async def end_call(context: ServedStream, code: StatusCode, text: str) -> NoReturn:
    """End a call with a status. Whoever does not read finds it when it does; nobody waits for that here."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ABORT_PATIENCE):
            await context.abort(code, text)
    raise asyncio.CancelledError
