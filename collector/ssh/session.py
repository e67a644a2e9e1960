"""One command after the other over an open connection, bounded in time and size."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple

import asyncssh
from asyncssh import SSHClientConnection, SSHKey

_COMPLAINT = 500  # bytes of what a command says on standard error that are kept


class Answer(NamedTuple):
    """What a command printed, and the beginning of what it complained of.

    `is_cut`: it printed more than the limit, which was not read.
    """

    output: bytes
    is_cut: bool
    complaint: bytes


class NotStarted(OSError):
    """A connection that once worked does not answer any more."""


class Connection:
    """An open connection to one host. Commands run one after the other."""

    def __init__(self, connection: SSHClientConnection):
        self._connection = connection

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed by either side, as far as anybody knows."""
        return not self._connection.is_closed()

    @property
    def host_key(self) -> SSHKey | None:
        """The key with which the host has shown that it is it."""
        return self._connection.get_server_host_key()

    async def run(self, command: str, script: bytes, end: bytes, limit: int, start_within: float) -> Answer:
        """What `command` prints, fed with `script`, until a line begins with `end`. Cancel it to give it up.

        Raises NotStarted, asyncssh.Error or OSError when the connection does not hold.
        """
        reader = _Reader(end, limit)
        try:
            async with asyncio.timeout(start_within):
                channel, _ = await self._connection.create_session(lambda: reader, command, encoding=None)
        except TimeoutError:
            raise NotStarted(f"no command could be started within {start_within:.1f} s") from None
        try:
            with suppress(BrokenPipeError):  # a forced command may not read it
                channel.write(script)
                channel.write_eof()
            return await reader.done
        finally:
            channel.close()

    def close(self) -> None:
        """Let go of it, without waiting for the other side."""
        self._connection.abort()


class _Reader(asyncssh.SSHClientSession[bytes]):
    """Collects what a command prints."""

    def __init__(self, end: bytes, limit: int):
        self._end = b"\n" + end
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._complaint = b""
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self.done.done():
            return
        if datatype is not None:
            self._complaint += data[: _COMPLAINT - len(self._complaint)]
            return
        self._parts.append(data[: self._limit - self._size])
        self._size += len(data)
        if self._size > self._limit:
            self._finish(is_cut=True)
            return
        seen = self._tail + data
        if self._end in seen:
            self._finish(is_cut=False)
        self._tail = seen[-len(self._end) :]

    def eof_received(self) -> bool:
        self._finish(is_cut=False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._finish(is_cut=False)
        elif not self.done.done():
            self.done.set_exception(exc)

    def _finish(self, *, is_cut: bool) -> None:
        if not self.done.done():
            self.done.set_result(Answer(b"".join(self._parts), is_cut, self._complaint))
