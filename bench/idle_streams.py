"""Streams that say little and stay. Runs as a process.

`python -m bench.idle_streams ADDRESS --streams N --state-dir DIR` opens streams to an echo over TLS, each over a
connection of its own and all with the same host's certificates (see `bench.fleet`). Each is answered a Hello, a
layout and a report; then one line is printed, and they stay until the standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc

from agent.credential_files import CredentialFiles, Stored
from bench.load import LAYOUT, METHOD, Host
from collector.start import raise_open_files
from fleetpulse import convert
from fleetpulse.v1 import ingest_pb2 as pb

_AT_ONCE = 50  # connections in their handshake


async def _open(number: int, address: str, stored: Stored, turn: asyncio.Semaphore) -> Any:
    """A stream that has been answered, and what has to be kept for it to stay."""
    host = Host(number, seed=1, change=0)
    credentials = grpc.ssl_channel_credentials(stored.ca_bundle, stored.key, stored.chain)
    async with turn:
        channel = grpc.aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])
        call: Any = channel.stream_stream(METHOD, request_serializer=pb.StreamRequest.SerializeToString)()
        for message in (
            convert.encode_hello(host.hello),
            convert.encode_layout(LAYOUT),
            next(host.messages()),
        ):
            await call.write(message)
            if await call.read() is grpc.aio.EOF:
                raise SystemExit(f"a stream ended: {await call.details()}")
    return channel, call


async def _stay(options: argparse.Namespace) -> None:
    stored = CredentialFiles(options.state_dir).load(options.state_dir.name)
    turn = asyncio.Semaphore(_AT_ONCE)
    streams = await asyncio.gather(
        *(_open(number, options.address, stored, turn) for number in range(options.streams))
    )
    print(len(streams), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIR", help="named by the host's id")
    raise_open_files()
    asyncio.run(_stay(parser.parse_args()))


if __name__ == "__main__":
    main()
