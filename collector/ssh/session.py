"""The probe on one host, asked again and again over one connection, bounded in time and size.

One shell runs it for as long as the connection is there, and answers each line that it is sent. A command for
each answer would cost the host a login every time, with its lines in the host's log, and three round trips.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import asyncssh
from asyncssh import SSHClientChannel, SSHClientConnection, SSHKey

from collector.ssh import probe

_BUDGET = 2 * probe.OUTPUT_LIMIT  # bytes; a login takes a few thousand
_COMPLAINT = 500  # bytes of what a command says on standard error that are kept


class Answer(NamedTuple):
    """What the probe printed, and the beginning of what it complained of.

    `is_cut`: it printed more than the limit, which was not read.
    """

    output: bytes
    is_cut: bool
    complaint: bytes


class NotStarted(OSError):
    """A connection that once worked does not answer any more."""


class Budget:
    """How many bytes a host may send before it is asked again, whatever it says that they are.

    asyncssh sets packets together however large they claim to be, and answers without being asked are not read.
    """

    def __init__(self, connection: SSHClientConnection):
        self._left = _BUDGET
        self._abort = connection.abort
        self._receive = connection.data_received
        # The only place where every byte passes: the transport looks it up anew each time.
        connection.data_received = self._count  # type: ignore[method-assign]

    @property
    def is_spent(self) -> bool:
        """Whether the host has sent more than that, and was cut off."""
        return self._left < 0

    def renew(self) -> None:
        """Another question may have another answer."""
        self._left = _BUDGET

    def lift(self) -> None:
        """No limit any more: it is a jump host, and others speak through it, each with a budget of its own."""
        self._left = 1 << 62

    def _count(self, data: bytes, datatype: int | None = None) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._abort()
        else:
            self._receive(data, datatype)


class Connection:
    """An open connection to one host, which is asked one thing after the other."""

    def __init__(self, connection: SSHClientConnection, budget: Budget):
        self._connection = connection
        self._budget = budget
        self._channel: SSHClientChannel[bytes] | None = None
        self._reader = _Reader()

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed by either side, as far as anybody knows."""
        return not self._connection.is_closed()

    @property
    def host_key(self) -> SSHKey | None:
        """The key with which the host has shown that it is it."""
        return self._connection.get_server_host_key()

    async def ask(self, *, with_agent: bool, start_within: float) -> Answer:
        """The probe's answer. Cancel it to give it up, and close the connection then.

        Raises NotStarted if nothing at all comes within that many seconds, asyncssh.Error or OSError when the
        connection does not hold.
        """
        self._budget.renew()
        is_again = self._channel is not None and not self._reader.is_over
        answer = await self._ask(is_again, with_agent, start_within)
        if is_again and self._reader.is_over and not answer.output:
            answer = await self._ask(False, with_agent, start_within)  # it had ended in the meantime
        return answer

    async def _ask(self, is_again: bool, with_agent: bool, start_within: float) -> Answer:
        """The answer of the shell that is there, or of a new one."""
        try:
            async with asyncio.timeout(start_within):
                if is_again and self._channel is not None:
                    self._reader.expect()
                    self._channel.write(probe.wish(with_agent=with_agent))
                else:
                    await self._start(with_agent)
                await self._reader.begun
        except TimeoutError:
            raise NotStarted(f"the probe says nothing within {start_within:.1f} s") from None
        except BrokenPipeError:
            self._reader.is_over = True
            return Answer(b"", False, b"")
        return await self._reader.done

    def close(self) -> None:
        """Let go of it, without waiting for the other side."""
        self._connection.abort()

    async def _start(self, with_agent: bool) -> None:
        self._reader = reader = _Reader()
        reader.expect()
        self._channel, _ = await self._connection.create_session(
            lambda: reader, probe.command(with_agent=with_agent), encoding=None
        )
        self._channel.write(probe.SCRIPT)  # which a key that is bound to the probe does not need


class _Reader(asyncssh.SSHClientSession[bytes]):
    """Collects what the probe prints, answer by answer."""

    def __init__(self) -> None:
        self._end = b"\n" + probe.END
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._complaint = b""
        self.is_over = False
        """Nothing will come any more."""
        self.begun: asyncio.Future[None]
        self.done: asyncio.Future[Answer]

    def expect(self) -> None:
        """What comes from now on belongs to the next answer."""
        loop = asyncio.get_running_loop()
        self._parts, self._size, self._tail, self._complaint = [], 0, b"", b""
        self.begun, self.done = loop.create_future(), loop.create_future()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self.done.done():
            return
        if datatype is not None:
            self._complaint += data[: _COMPLAINT - len(self._complaint)]
            return
        if not self._size:
            self._begin()
        self._parts.append(data[: probe.OUTPUT_LIMIT - self._size])
        self._size += len(data)
        if self._size > probe.OUTPUT_LIMIT:
            self._finish(is_cut=True)
            return
        seen = self._tail + data
        if self._end in seen:
            self._finish(is_cut=False)
        self._tail = seen[-len(self._end) :]

    def eof_received(self) -> bool:
        self.is_over = True
        self._finish(is_cut=False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        if exc is None:
            self._finish(is_cut=False)
        elif not self.done.done():
            self.done.set_exception(exc)
            self._begin()
            self.done.exception()  # somebody may have given up waiting for it

    def _begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def _finish(self, *, is_cut: bool) -> None:
        self._begin()
        if not self.done.done():
            self.done.set_result(Answer(b"".join(self._parts), is_cut, self._complaint))
