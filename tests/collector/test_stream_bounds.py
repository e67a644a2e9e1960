"""What one stream may ask of a real collector."""

from __future__ import annotations

import asyncio
import uuid

import grpc

from fleetpulse import convert
from fleetpulse.model import CheckKey, CheckLayout, Hello, HostId, Layout, Measurement
from fleetpulse.rpc import CallOverError, open_stream, read_response, write_request
from tests.processes import Site


def wide_layout(number: int) -> Layout:
    measurements = tuple(Measurement(f"m{n}", "1") for n in range(convert.MAX_SERIES))
    return Layout((CheckLayout(CheckKey(f"c{number}"), measurements),))


def test_a_stream_of_ever_new_layouts_is_ended_before_it_fills_the_memory(sqlite_site: Site) -> None:
    sqlite_site.collector()
    code, details = asyncio.run(_announce_layouts(sqlite_site.address, 12))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "200000 checks and series" in details


async def _announce_layouts(address: str, layouts: int) -> tuple[grpc.StatusCode, str]:
    hello = Hello(HostId(str(uuid.uuid4())), "h", "m", "b", 1, "1", 1_000, 3_000)
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        call = open_stream(channel)
        try:
            await write_request(call, convert.encode_hello(hello))
            for number in range(layouts):
                await write_request(call, convert.encode_layout(wide_layout(number)))
        except CallOverError:
            pass
        try:
            while await read_response(call) is not None:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
