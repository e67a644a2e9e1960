"""The limit of the transport: a bare `grpc.aio` server that sends back every message it reads."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import grpc

from fleetpulse.v1 import ingest_pb2 as pb


class _Echo(grpc.GenericRpcHandler):
    def service(self, _: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(
            self._echo,
            request_deserializer=pb.StreamRequest.FromString,
            response_serializer=pb.StreamRequest.SerializeToString,
        )

    async def _echo(self, _: Any, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)


async def _serve() -> None:
    server = grpc.aio.server(
        handlers=[_Echo()],
        options=[
            ("grpc.server.max_pending_requests", 10_000),
            ("grpc.server.max_pending_requests_hard_limit", 10_000),
        ],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve())
