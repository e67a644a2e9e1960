"""Connections that are kept open between polls: making one costs several polls."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple

import asyncssh

from collector.core.diagnosis import DiagnosisKind
from collector.ssh.connection import Dialer, OnStage
from collector.ssh.failure import ProbeFailure
from collector.ssh.session import Answer, Connection
from collector.ssh.target import Target

_START_SHARE = 3  # part of a poll's time in which a command has to start


class _Kept(NamedTuple):
    connection: Connection
    way: tuple[object, ...]
    generation: int


class Links:
    """At most `limit` connections; the one not used for the longest is closed first."""

    def __init__(self, dialer: Dialer, limit: int):
        self.dialer = dialer
        self._limit = limit
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._generation = 0  # a connection of an older one is not kept

    def __len__(self) -> int:
        return len(self._kept)

    async def ask(
        self, target: Target, *, with_agent: bool = False, on_stage: OnStage = lambda _stage, _text: None
    ) -> Answer:
        """What the probe prints on a host, within its timeout. Raises ProbeFailure."""
        if not target.keys and target.agent is None:
            text = "nothing to log in with: set ssh.keys or ssh.agent, or give the host a key"
            raise ProbeFailure(DiagnosisKind.NOT_PROBED, text)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + target.timeout
        kept = self._take(target)
        if kept is not None:
            answer = await self._ask_again(kept, target, deadline, with_agent=with_agent)
            if answer is not None:
                return answer
        generation = self._generation
        connection = await self.dialer.dial(target, on_stage)
        try:
            async with asyncio.timeout_at(deadline):
                answer = await _ask(connection, target, with_agent=with_agent)
        except (TimeoutError, asyncssh.Error, OSError) as error:
            connection.close()
            raise _of_running(error, target) from None
        except BaseException:
            connection.close()
            raise
        self._keep(target, connection, generation, answer)
        return answer

    def drop(self, host: int) -> None:
        """Close the connection to a host that is not to be asked any more."""
        kept = self._kept.pop(host, None)
        if kept is not None:
            kept.connection.close()

    def drop_all(self) -> None:
        """Close everything, as when it changes whom to trust; what is in use, after that."""
        self._generation += 1
        for host in list(self._kept):
            self.drop(host)
        self.dialer.close()

    async def _ask_again(
        self, kept: _Kept, target: Target, deadline: float, *, with_agent: bool
    ) -> Answer | None:
        """The answer over a connection that was kept; None if it does not hold any more."""
        try:
            async with asyncio.timeout_at(deadline):
                answer = await _ask(kept.connection, target, with_agent=with_agent)
        except TimeoutError as error:
            kept.connection.close()
            raise _of_running(error, target) from None
        except (asyncssh.Error, OSError):
            kept.connection.close()
            return None
        except BaseException:
            kept.connection.close()
            raise
        self._keep(target, kept.connection, kept.generation, answer)
        return answer

    def _take(self, target: Target) -> _Kept | None:
        kept = self._kept.pop(target.host, None)
        if kept is None or (kept.connection.is_open and kept.way == _way(target)):
            return kept
        kept.connection.close()
        return None

    def _keep(self, target: Target, connection: Connection, generation: int, answer: Answer) -> None:
        if answer.is_cut or generation != self._generation:
            connection.close()  # it goes on printing, or speaks with whom nobody trusts any more
            return
        self._kept[target.host] = _Kept(connection, _way(target), generation)
        while len(self._kept) > self._limit:
            self.drop(next(iter(self._kept)))


async def _ask(connection: Connection, target: Target, *, with_agent: bool) -> Answer:
    return await connection.ask(with_agent=with_agent, start_within=target.timeout / _START_SHARE)


def _way(target: Target) -> tuple[object, ...]:
    """What has to be the same for a connection to be of use."""
    return target.address, target.port, target.user, target.keys, target.jump, tuple(target.options.items())


def _of_running(error: Exception, target: Target) -> ProbeFailure:
    """The host let us in, and then the probe did not come to its end."""
    if isinstance(error, asyncssh.Error):
        why = error.reason
    elif isinstance(error, TimeoutError):
        why = f"the probe did not end within {target.timeout:g} s"
    else:
        why = str(error)
    return ProbeFailure(DiagnosisKind.PROBE_FAILED, f"{target.place}: {why}")
