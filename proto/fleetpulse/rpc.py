"""The typed call behind the stream, so that only the wire's own modules know the generated stub."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from fleetpulse.v1 import ingest_pb2 as pb
from fleetpulse.v1.ingest_pb2_grpc import IngestServiceStub

StreamCall = grpc.aio.StreamStreamCall[pb.StreamRequest, pb.StreamResponse]
"""One open stream, seen from the agent."""


ServedStream = grpc.aio.ServicerContext[bytes, pb.StreamResponse]
"""One open stream, seen from the collector. It reads bytes: see `serve_streams`."""


class CallOverError(Exception):
    """Nothing can be written, because the call has ended; reading it tells why."""


def open_stream(channel: grpc.aio.Channel) -> StreamCall:
    """Start the stream on `channel`; nothing has been sent or waited for when this returns."""
    return IngestServiceStub(channel).Stream()


def serve_streams(
    server: grpc.aio.Server, handler: Callable[[object, ServedStream], Awaitable[None]]
) -> None:
    """Have `handler` serve every stream that is opened on `server`, as (unused, context).

    What the context reads is not decoded: a message that cannot be is the agent's mistake, and gRPC would
    call it ours (INTERNAL) before anybody could count it.
    """
    service = pb.DESCRIPTOR.services_by_name["IngestService"]
    handlers: dict[str, grpc.RpcMethodHandler[bytes, pb.StreamResponse]] = {
        method.name: grpc.stream_stream_rpc_method_handler(
            handler, request_deserializer=None, response_serializer=pb.StreamResponse.SerializeToString
        )
        for method in service.methods
    }
    server.add_registered_method_handlers(service.full_name, handlers)


async def read_response(call: StreamCall) -> pb.StreamResponse | None:
    """The next message; None once the collector has closed the stream in order.

    Raises AioRpcError if it ended in any other way. Cancelling this ends the call.
    """
    message = await call.read()
    return message if isinstance(message, pb.StreamResponse) else None


async def write_request(call: StreamCall, message: pb.StreamRequest) -> None:
    """Send one message, waiting while flow control asks for it.

    Raises CallOverError.
    """
    # `call.write` on a call that the collector is just ending replaces the collector's status by
    # "Internal error from Core" (https://github.com/grpc/grpc/issues/36066), and with it the reason
    # of a refusal. The call underneath fails without touching the status.
    inner: Any = getattr(call, "_cython_call", None)
    try:
        await call.wait_for_connection()
        if inner is None:
            await call.write(message)
        else:
            await inner.send_serialized_message(message.SerializeToString())
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
        raise CallOverError(str(error)) from None
