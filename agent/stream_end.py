"""The ways in which a stream ends. Delivery decides by them how long to wait and what to send again."""

from __future__ import annotations

import grpc
import grpc.aio

from agent.backlog import Waiting
from agent.refusal import ENROL_AGAIN

# The collector understood and said no. Trying again soon would change nothing.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class StreamEndedError(Exception):
    """A stream ended; the text says why."""


class StreamLostError(StreamEndedError):
    """The connection broke, went silent, or was ended without a reason."""


class StreamOutdatedError(StreamEndedError):
    """The spool's epoch is no longer the one that the stream's Hello named."""


class StreamRenewedError(StreamEndedError):
    """There is a new certificate, or another CA to trust; the next stream uses it at once."""

    def __init__(self) -> None:
        super().__init__("the credentials changed")


class StreamDismissedError(StreamEndedError):
    """The collector said Goodbye. `reconnect_after` in seconds."""

    def __init__(self, reconnect_after: float) -> None:
        super().__init__("the collector said goodbye")
        self.reconnect_after = reconnect_after


class StreamRefusedError(StreamEndedError):
    """The collector refused what it was sent. `in_flight` is what waited for an Ack just then."""

    def __init__(self, code: grpc.StatusCode, details: str, in_flight: Waiting | None) -> None:
        text = f"refused: {details or 'no reason given'} ({code.name})"
        if code is grpc.StatusCode.UNAUTHENTICATED and "fleet-agent enroll" not in details:
            text += f"; {ENROL_AGAIN}"
        super().__init__(text)
        self.code = code
        self.in_flight = in_flight


def ended_by(error: grpc.aio.AioRpcError, in_flight: Waiting | None) -> StreamEndedError:
    """What gRPC's error means."""
    details = error.details() or ""
    if error.code() in _REFUSALS:
        return StreamRefusedError(error.code(), details, in_flight)
    return StreamLostError(f"{details or 'no reason given'} ({error.code().name})")
