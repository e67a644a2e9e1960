"""The credentials of a running agent: read for each stream, renewed in time.

Two thirds of a certificate's time after it was stored, a little earlier or later so that a fleet that
enrolled together does not renew together, a new key is made and the collector asked for a certificate. The
same when the collector says that it replaced its CA, within the time that it gives. What fails is tried
again later; reports are delivered meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from agent.credential_files import CredentialFiles, CredentialsError, Stored
from agent.key_process import KeyProcessError, NewKey, make_key

log = logging.getLogger(__name__)

RENEWAL_SHARE = 2 / 3
"""Of a certificate's time, after which a new one is asked for."""
_SPREAD = 0.06  # of the time again, over which the hosts' renewals are spread
_RETRY_SHARE = 0.1  # of the time, after which a renewal that failed is tried again
_RETRY = (0.5, 3600.0)  # seconds, within which that stays
_LOOK_AGAIN = 600.0  # seconds at most until a wait for the time to renew looks at the clock again


class Credentials:
    """What proves to the collector that this is the host `host_id`.

    `wake` of `request` is called in the event loop. For one event loop.
    """

    def __init__(
        self,
        files: CredentialFiles,
        host_id: str,
        *,
        make_key: Callable[[], Awaitable[NewKey]] = make_key,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._files = files
        self._host_id = host_id
        self._make_key = make_key
        self._clock = clock
        self._draw = draw
        self._stored: Stored | None = None
        self._place_in_spread = draw()
        self._new_key: NewKey | None = None
        self._making: asyncio.Task[None] | None = None
        # Both by the event loop's clock, so that they outlast a clock that is set.
        self._renew_by_order = float("inf")
        self._not_before = 0.0
        self._problem = ""  # what was logged last, so that it is not logged again every time

    async def load(self) -> Stored:
        """The credentials for the next stream. Raises CredentialsError."""
        self._stored = await asyncio.to_thread(self._files.load, self._host_id)
        return self._stored

    def seconds_until_request(self) -> float:
        """When to look at `request` again; 0: now."""
        if self._stored is None or self._making is not None:
            return _LOOK_AGAIN
        now = asyncio.get_running_loop().time()
        share = RENEWAL_SHARE + _SPREAD * (self._place_in_spread - 0.5)
        by_age = self._stored.stored_at + share * self._stored.lifetime - self._clock()
        due = max(min(by_age, self._renew_by_order - now), self._not_before - now)
        return min(max(0.0, due), _LOOK_AGAIN)

    def request(self, wake: Callable[[], None]) -> bytes | None:
        """The certificate request to send now, in DER; None while there is nothing to ask for.

        None, too, while the key is being made; `wake` is called when it is.
        """
        if self.seconds_until_request() > 0:
            return None
        if self._new_key is None:
            self._making = asyncio.create_task(self._make(wake))
            return None
        self._put_off()
        return self._new_key.csr

    async def accept(self, chain: bytes) -> bool:
        """Take the collector's answer to a request; whether there is a new certificate to use now."""
        key = self._new_key
        if key is None:
            self._fail("the collector sent a certificate that nobody asked for")
            return False
        if not chain:
            self._fail("the collector cannot issue one now; its log says why")
            return False
        try:
            holds = await asyncio.to_thread(self._files.store_pair, key.key, chain, self._host_id)
        except CredentialsError as error:
            self._fail(str(error))
            return False
        self._new_key = None
        self._renew_by_order = float("inf")
        self._not_before = asyncio.get_running_loop().time() + _RETRY[0]
        self._problem = ""
        self._place_in_spread = self._draw()
        log.info("certificate renewed, it holds until %s", holds.until)
        return True

    async def trust(self, bundle: bytes, renew_within: int) -> None:
        """Trust these CA certificates from the next stream on, and renew within so many milliseconds if any."""
        try:
            if self._stored is None or bundle != self._stored.ca_bundle:
                await asyncio.to_thread(self._files.store_bundle, bundle)
                log.info("the collector's CA certificates were replaced, as it asked")
        except CredentialsError as error:
            self._fail(str(error))
            return
        if renew_within > 0:
            order = asyncio.get_running_loop().time() + self._draw() * renew_within / 1000
            self._renew_by_order = min(self._renew_by_order, order)

    def close(self) -> None:
        """Make no more keys."""
        if self._making is not None:
            self._making.cancel()

    async def _make(self, wake: Callable[[], None]) -> None:
        try:
            self._new_key = await self._make_key()
        except KeyProcessError as error:
            self._put_off()
            self._fail(f"no new key: {error}")
        finally:
            self._making = None
            with contextlib.suppress(RuntimeError):  # the loop may be closing
                wake()

    def _put_off(self) -> None:
        """Ask again no sooner than after a while, whatever becomes of this try."""
        lifetime = self._stored.lifetime if self._stored else 0.0
        shortest, longest = _RETRY
        delay = min(max(lifetime * _RETRY_SHARE, shortest), longest)
        self._not_before = asyncio.get_running_loop().time() + delay * (1 + _SPREAD * self._draw())

    def _fail(self, problem: str) -> None:
        level = logging.DEBUG if problem == self._problem else logging.WARNING
        self._problem = problem
        log.log(level, "certificate not renewed: %s", problem)
