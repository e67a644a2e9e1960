"""The typed call behind the stream, so that only the wire's own modules know the generated stub."""

from __future__ import annotations

import grpc.aio

from fleetpulse.v1 import ingest_pb2 as pb
from fleetpulse.v1.ingest_pb2_grpc import IngestServiceStub

StreamCall = grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]
"""One open stream, seen from the agent."""


def open_stream(channel: grpc.aio.Channel) -> StreamCall:
    """Start the stream on `channel`; nothing has been sent or waited for when this returns."""
    return IngestServiceStub(channel).Stream()
