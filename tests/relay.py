"""A network between agents and a collector that a test can cut.

A relay passes TCP connections on to one address. Cut, it holds every byte back without a word to either
end, as a network does that loses all packets; healed, it passes on what it held. Abandoned, the
collector's end is closed and the agent's stays open: a half-open connection, on which nothing ever fails.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

_CHUNK = 1 << 16
_Result = TypeVar("_Result")


class Relay:
    """Passes connections to `address` on, in an event loop of its own thread.

    `source`, such as "127.0.0.2", is the address that the other end sees them come from.
    """

    def __init__(self, address: str, source: str = ""):
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._source = (source, 0) if source else None
        self.address = ""
        """HOST:PORT where the relay listens."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Relay:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many connections are open to agents now."""
        return self._call(lambda: len(self._links))

    def cut(self) -> None:
        """Pass nothing on. Connections stay open, new ones are taken and get no answer."""
        self._call(self._passing.clear)

    def heal(self) -> None:
        """Pass on again, also what was held back."""
        self._call(self._passing.set)

    def abandon(self) -> None:
        """Close every connection towards the collector and leave the agents' ends open, silent for ever."""
        self._call(lambda: [link.abandon() for link in self._links])

    def reset(self) -> None:
        """Break every connection at both ends."""
        self._call(lambda: [link.abort() for link in list(self._links)])

    def _call(self, action: Callable[[], _Result]) -> _Result:
        async def run() -> _Result:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, backlog=1024)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = _Link(writer)
        self._links.add(link)
        try:
            await self._pass(reader, writer, link)
        except asyncio.CancelledError:
            pass  # by `_close`; asyncio.start_server would tell of it
        finally:
            link.abort()
            self._links.discard(link)
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link) -> None:
        try:
            await self._passing.wait()
            up_reader, link.up = await asyncio.open_connection(*self._target, local_addr=self._source)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, link.up, link))
                pumps.create_task(self._pump(up_reader, writer, link))
        except* OSError:
            pass

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, link: _Link) -> None:
        while data := await source.read(_CHUNK):
            await self._passing.wait()
            if link.is_abandoned:
                continue  # swallowed, as by a machine that is no longer there
            sink.write(data)
            await sink.drain()
        if link.is_abandoned and sink is not link.up:
            await link.broken.wait()  # the collector's end is gone, and the agent is not told
        link.abort()


class _Link:
    """One connection: the agent's end, and the collector's once it is open."""

    def __init__(self, down: asyncio.StreamWriter):
        self._down = down
        self.up: asyncio.StreamWriter | None = None
        self.is_abandoned = False
        self.broken = asyncio.Event()

    def abandon(self) -> None:
        self.is_abandoned = True
        if self.up is not None:
            self.up.transport.abort()

    def abort(self) -> None:
        self.broken.set()
        for end in (self._down, self.up):
            if end is not None:
                end.transport.abort()
