"""Streams that say little and stay. Runs as a process.

`python -m bench.idle_streams ADDRESS --streams N --state-dir DIR` opens streams to an echo over TLS, each over a
connection of its own and all with the same host's certificate, which an echo does not mind (see `bench.fleet`). Each
sends a Hello, a layout and one report, and is sent all three back; then their number is printed, and they stay until
the standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import grpc

from agent.credential_files import CredentialFiles, Stored
from bench.stream import Host, Stream, connection
from collector.start import raise_open_files

_AT_ONCE = 50  # connections in their handshake


async def _open(number: int, address: str, stored: Stored, turn: asyncio.Semaphore) -> Stream:
    """One that has been answered. It stays as long as it is kept."""
    credentials = grpc.ssl_channel_credentials(stored.ca_bundle, stored.key, stored.chain)
    async with turn:
        stream = Stream(connection(address, credentials), Host(number, seed=1, change=0), echo=True)
        await stream.open()
        await stream.report()
    return stream


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
