"""What the transport costs: a bare `grpc.aio` server that decodes every message it reads and sends it back.

`python -m bench.echo [--tuned] [--identity-dir DIR]` prints its address. Bare is what gRPC and asyncio do unless told
otherwise; tuned has the collector's event loop, calm garbage collector and options of the transport that change what
a message or a connection costs. With an identity it speaks TLS as a collector does, to who has a certificate.

It is an echo, so it answers a report with the whole report, where a collector answers an Ack of a few bytes: what it
encodes and sends is more. It reads a report only as protobuf does, and keeps nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop

from collector.config import Identity
from collector.identity.keyring import Keyring
from collector.start import calm_garbage_collector, raise_open_files
from fleetpulse.v1 import ingest_pb2 as pb

_STREAMS = 20_000
_TUNING = [("grpc.http2.bdp_probe", 0), ("grpc.tsi.max_frame_size", 1024)]  # see collector/ingest/server.py


@contextmanager
def echo_server(*options: str) -> Iterator[tuple[str, int]]:
    """The address and the process of a running echo. Raises SystemExit if it does not start."""
    command = [sys.executable, "-m", "bench.echo", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as echo:
        assert echo.stdout is not None
        try:
            address = echo.stdout.readline().strip()
            if not address:
                raise SystemExit("the echo does not start")
            yield address, echo.pid
        finally:
            echo.kill()


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


def _credentials(identity_dir: Path) -> grpc.ServerCredentials:
    material = Keyring(Identity(identity_dir), lambda: ()).load()
    pair = (material.server_key, material.server_chain)
    return grpc.ssl_server_credentials([pair], material.bundle, require_client_auth=True)


async def _serve(identity_dir: Path | None, *, tuned: bool) -> None:
    server = grpc.aio.server(
        handlers=[_Echo()],
        options=[
            ("grpc.server.max_pending_requests", _STREAMS),
            ("grpc.server.max_pending_requests_hard_limit", _STREAMS),
            *(_TUNING if tuned else ()),
        ],
    )
    if identity_dir is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", _credentials(identity_dir))
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tuned", action="store_true", help="with what the collector tunes")
    parser.add_argument("--identity-dir", type=Path, metavar="DIR", help="speak TLS with a collector's keys")
    options = parser.parse_args()
    raise_open_files()
    if options.tuned:
        calm_garbage_collector()
        uvloop.run(_serve(options.identity_dir, tuned=True))
    else:
        asyncio.run(_serve(options.identity_dir, tuned=False))


if __name__ == "__main__":
    main()
