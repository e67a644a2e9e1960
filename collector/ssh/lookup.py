"""Names of hosts become addresses, in threads of our own: a name server that is away may hold one for minutes.

Not the loop's executor, nor any other that the end of the program waits for.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SocketAddress = tuple[socket.AddressFamily, tuple[Any, ...]]

_THREADS = 8
_Job = Callable[[], None]


class Lookups:
    """Looks names up, each once at a time however many wait for it. Used in one event loop."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._threads = 0
        self._waiting: dict[tuple[str, int], asyncio.Future[list[SocketAddress]]] = {}

    async def look_up(self, host: str, port: int) -> list[SocketAddress]:
        """Where that is, best first. Raises OSError or UnicodeError for what is no name of anything.

        An address waits for no name server, nor for those who do.
        """
        if not host.isprintable():
            raise OSError(f"{host!r} is no name")
        with suppress(OSError):
            return _look_up(host, port, socket.AI_NUMERICHOST)
        known = self._waiting.get((host, port))
        if known is None:
            self._waiting[host, port] = known = asyncio.get_running_loop().create_future()
            known.add_done_callback(lambda done: (self._waiting.pop((host, port), None), done.exception()))
            self._start(host, port, known)
        return await asyncio.shield(known)

    def _start(self, host: str, port: int, answer: asyncio.Future[list[SocketAddress]]) -> None:
        loop = answer.get_loop()

        def job() -> None:
            try:
                found: list[SocketAddress] | Exception = _look_up(host, port)
            except Exception as error:  # noqa: BLE001 - it belongs to who waits
                found = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_answer, answer, found)

        self._jobs.put(job)
        if self._threads < min(_THREADS, len(self._waiting)):
            self._threads += 1
            threading.Thread(target=self._serve, name="lookup", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._jobs.get()()


def _answer(answer: asyncio.Future[list[SocketAddress]], found: list[SocketAddress] | Exception) -> None:
    if answer.done():
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)


def _look_up(host: str, port: int, flags: int = 0) -> list[SocketAddress]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]
