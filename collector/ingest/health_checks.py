"""The standard health service on the report port, so that it takes nobody's place there."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2

from collector.health import COUNTS_METADATA, PROBLEM_METADATA, Health
from collector.ingest.calls import OpenCalls
from collector.ingest.endings import Refused, end_call
from fleetpulse.rpc import ServedStream

_PATIENCE = 5.0  # seconds that a check may take, most of which is the peer's
_NO_WATCH = "Watch is not served here; call Check from time to time"


class HealthChecks:
    """Answers `Check`, and says too why the collector does not serve and what was counted.

    On one event loop. Single calls are served like streams: gRPC would wait for the request of a single call,
    and keep its place, for as long as the peer likes. `Watch` is a call that may last for ever, and is not served.
    """

    def __init__(self, health: Health, counts: Counter[str], calls: OpenCalls):
        self._health = health
        self._counts = counts
        self._calls = calls
        self._is_stopping = False

    def serve_on(self, server: aio.Server) -> None:
        """Have `server` offer the service."""
        handlers: dict[str, grpc.RpcMethodHandler[bytes, health_pb2.HealthCheckResponse]] = {
            name: grpc.stream_stream_rpc_method_handler(
                handler, None, health_pb2.HealthCheckResponse.SerializeToString
            )
            for name, handler in (("Check", self._check), ("Watch", self._refuse))
        }
        service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        server.add_registered_method_handlers(service, handlers)

    def stop(self) -> None:
        """Say from now on that the collector does not serve."""
        self._is_stopping = True

    async def _check(self, _: object, context: ServedStream) -> None:
        try:
            with self._calls.counted(context):
                async with asyncio.timeout(_PATIENCE):
                    await self._answer(context)
        except Refused as refused:
            code, text = refused.ending.code, str(refused)
            if refused.ending.kind:
                self._counts[refused.ending.kind] += 1
        except TimeoutError:
            code, text = StatusCode.DEADLINE_EXCEEDED, "no health check in time"
        else:
            return
        await end_call(context, code, text)

    async def _answer(self, context: ServedStream) -> None:
        data: Any = await context.read()
        try:
            request = health_pb2.HealthCheckRequest.FromString(b"" if data is aio.EOF else data)
        except DecodeError:
            raise Refused(StatusCode.INVALID_ARGUMENT, "no HealthCheckRequest") from None
        if request.service:
            raise Refused(StatusCode.NOT_FOUND, "there is one status for all services: ask for none")
        told = [(COUNTS_METADATA, json.dumps(self._counts).encode())]
        if problem := self._health.problem:
            told.append((PROBLEM_METADATA, problem.encode()))
        context.set_trailing_metadata(tuple(told))
        is_serving = self._health.is_serving and not self._is_stopping
        status = "SERVING" if is_serving else "NOT_SERVING"
        answer: Any = health_pb2.HealthCheckResponse(status=status)
        await context.write(answer)

    async def _refuse(self, _: object, context: ServedStream) -> None:
        await end_call(context, StatusCode.UNIMPLEMENTED, _NO_WATCH)
