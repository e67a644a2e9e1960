"""The limit of the transport: a bare `grpc.aio` server that sends back every message it reads.

`python -m bench.echo [--tuned]` prints its address. Bare is what gRPC and asyncio do unless told otherwise;
tuned has the collector's event loop, calm garbage collector and options of the transport.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
import uvloop

from collector.start import calm_garbage_collector, raise_open_files
from fleetpulse.v1 import ingest_pb2 as pb

_STREAMS = 20_000
_TUNING = [("grpc.http2.bdp_probe", 0)]  # see collector/ingest/server.py


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


async def _serve(*, tuned: bool) -> None:
    server = grpc.aio.server(
        handlers=[_Echo()],
        options=[
            ("grpc.server.max_pending_requests", _STREAMS),
            ("grpc.server.max_pending_requests_hard_limit", _STREAMS),
            *(_TUNING if tuned else ()),
        ],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tuned", action="store_true", help="with what the collector tunes")
    tuned = parser.parse_args().tuned
    raise_open_files()
    if tuned:
        calm_garbage_collector()
        uvloop.run(_serve(tuned=True))
    else:
        asyncio.run(_serve(tuned=False))


if __name__ == "__main__":
    main()
