"""How many connect to the report port and show no certificate that is accepted.

gRPC ends such connections before Python hears of them. But it asks for our certificates at each
handshake, and whoever gets through makes a call: the difference is those that did not.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc import aio

_PATIENCE = 15.0  # seconds that a connection may take from its handshake to its first call
_SAME_CONNECTION = 60.0  # seconds in which a port at the other end is hardly taken again
_REMEMBERED = 20_000  # peers

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Handshakes(aio.ServerInterceptor):
    """Counts both, on one port. `begin` is for gRPC's threads, all else for the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = 0
        self._begun_before = 0
        self._looked = clock()
        self._heard = 0
        self._failed = 0
        self._peers: OrderedDict[str, float] = OrderedDict()

    def begin(self) -> None:
        """A handshake begins."""
        with self._lock:
            self._begun += 1

    def hear(self, peer: str) -> None:
        """There is a call of that peer. Further ones of the same connection do not count."""
        now = self._clock()
        peers = self._peers
        if now - peers.get(peer, -_SAME_CONNECTION) >= _SAME_CONNECTION:
            self._heard += 1
        peers[peer] = now
        peers.move_to_end(peer)
        while len(peers) > _REMEMBERED or now - next(iter(peers.values())) >= _SAME_CONNECTION:
            peers.popitem(last=False)

    def take_failed(self, *, at_once: bool = False) -> int:
        """How many have failed that were not told before; `at_once`: those that might just be slow, too."""
        now = self._clock()
        if not at_once and now - self._looked < _PATIENCE:
            return 0
        begun = self._begun
        failed = max(0, (begun if at_once else self._begun_before) - self._heard - self._failed)
        self._failed += failed
        # A connection that made calls after a long pause was heard twice. It must not make up for others.
        self._heard = min(self._heard, begun - self._failed)
        self._begun_before, self._looked = begun, now
        return failed

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Hear every call of a method that exists."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(kind for kind in kinds if getattr(handler, kind) is not None)
        serve = getattr(handler, kind)

        async def heard(request: object, context: aio.ServicerContext[Any, Any]) -> object:
            self.hear(context.peer())
            return await serve(request, context)

        replaced: _Handler = handler._replace(**{kind: heard})
        return replaced
