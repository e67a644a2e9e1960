"""Calls at the enrolment port that are more than an enrolment."""

from __future__ import annotations

import grpc

from fleetpulse.enrolment import fetch_trust
from tests.collector.enrolment_site import EnrolmentSite

_ENROLL = "/fleetpulse.v1.EnrolmentService/Enroll"


def has_fetched(channel: grpc.Channel) -> bool:
    """Whether a call was taken.

    The port ends every connection after a while, and calls of that moment with it. A call right after
    another on the same connection may be refused, too: see `create_enrolment_server`.
    """
    try:
        fetch_trust(channel, 10)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined] - the stubs do not know that a call's error is a call
            raise
        return False
    return True


def call_raw(site: EnrolmentSite, data: bytes) -> object:
    """Call Enroll with these bytes. Raises grpc.RpcError."""
    with site.channel() as channel:
        return channel.unary_unary(_ENROLL)(data, timeout=20)
