"""The credentials of a running agent: read for each stream, renewed in time.

Two thirds of a certificate's time after it was stored, a little earlier or later so that a fleet that
enrolled together does not renew together, a new key is made and the collector asked for a certificate. The
same when the collector says that it replaced its CA, within the time that it gives. What fails is tried
again later; reports are delivered meanwhile.

New CA certificates are tried alone, and soon. Until that has worked, those before are trusted as well if it
fails: whatever the collector says by mistake does not lock its agents out.

A new certificate that the disk does not take is kept in memory, and stored later. It is used only when the
old one is of no more use: the collector accepts no older certificate once it has seen a newer one, and a
restart would find nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple

from agent.certificate import Validity
from agent.complaints import Complaints
from agent.credential_files import CredentialFiles, CredentialsError, Stored, check_pair
from agent.key_process import KeyProcessError, NewKey, make_key
from agent.refusal import forget_refusal, note_refusal

log = logging.getLogger(__name__)

RENEWAL_SHARE = 2 / 3
"""Of a certificate's time, after which a new one is asked for."""
_SPREAD = 0.06  # of the time again, over which the hosts' renewals are spread
_RETRY_SHARE = 0.1  # of the time, after which a renewal that failed is tried again
_RETRY = (0.5, 3600.0)  # seconds, within which that stays
_LOOK_AGAIN = 600.0  # seconds at most until a wait for the time to renew looks at the clock again
_PROVE_WITHIN = 300.0  # seconds, over which the hosts that got new CA certificates try them
_STORE_AGAIN = 60.0  # seconds
_LAST_SHARE = 0.1  # of a certificate's time, in which one that is only in memory is used instead


class _Unstored(NamedTuple):
    """A renewed certificate that the disk has not taken. `replaces` is the chain that it has."""

    key: bytes
    chain: bytes
    validity: Validity
    issued_at: float
    replaces: bytes


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
        # These four by the event loop's clock, so that they outlast a clock that is set.
        self._renew_by_order = float("inf")
        self._not_before = 0.0
        self._prove_at = float("inf")
        self._store_at = 0.0
        self._unstored: _Unstored | None = None
        self._falls_back = False  # the next stream trusts the previous CA certificates, too
        self._is_refused = False
        self._may_be_noted = True  # that it is refused
        self._renewing, self._trusting = Complaints(), Complaints()

    async def load(self) -> Stored:
        """The credentials for the next stream. Raises CredentialsError."""
        await self._store_what_is_not()
        stored = await asyncio.to_thread(self._files.load, self._host_id)
        unstored = self._unstored
        if unstored is not None and unstored.replaces != stored.chain:
            unstored = self._unstored = None  # this machine was enrolled again meanwhile
        if unstored is not None and (self._is_in_use(unstored) or self._is_of_no_more_use(stored)):
            key, chain, validity, stored_at, _ = unstored
            stored = replace(stored, key=key, chain=chain, validity=validity, stored_at=stored_at)
        self._stored = replace(stored, trusts_previous=self._falls_back and bool(stored.previous_bundle))
        self._falls_back = False
        self._prove_at = float("inf")
        return self._stored

    async def welcomed(self) -> None:
        """The stream with what `load` gave has been welcomed."""
        self._is_refused = False
        stored = self._stored
        try:
            if self._may_be_noted:
                await asyncio.to_thread(forget_refusal, self._files.folder)
                self._may_be_noted = False
            if stored is not None and stored.previous_bundle and not stored.trusts_previous:
                await asyncio.to_thread(self._files.proved, stored.ca_bundle)
        except (OSError, CredentialsError) as error:
            log.debug("%s; tried again with the next stream", error)

    async def refused(self, reason: str) -> None:
        """The collector said that the certificate is worth nothing."""
        self._is_refused = self._may_be_noted = True
        if self._stored is None:
            return
        try:
            await asyncio.to_thread(note_refusal, self._files.folder, self._stored.chain, reason)
        except OSError as error:
            log.debug("cannot note that this host is refused: %s", error)

    def fall_back(self) -> bool:
        """The collector's certificate is of no CA that was trusted; whether to try again with more of them."""
        if self._stored is None or not self._stored.previous_bundle or self._stored.trusts_previous:
            return False
        self._falls_back = True
        problem = (
            "the collector's certificate is not of the CA that it had its agents trust last; the CA certificates"
            " before stay trusted"
        )
        log.log(self._trusting.level(problem), "%s", problem)
        return True

    async def have_changed(self) -> bool:
        """Whether what is in use is not what the next stream would use."""
        stored_now = await self._store_what_is_not()
        return stored_now or asyncio.get_running_loop().time() >= self._prove_at

    def seconds_until_request(self) -> float:
        """When to look at `have_changed` and `request` again; 0: now."""
        now = asyncio.get_running_loop().time()
        next_store = self._store_at if self._unstored is not None else float("inf")
        due = min(self._seconds_until_renewal(), self._prove_at - now, next_store - now)
        return min(max(0.0, due), _LOOK_AGAIN)

    def _seconds_until_renewal(self) -> float:
        if self._stored is None or self._making is not None:
            return _LOOK_AGAIN
        if self._unstored is not None and not self._is_in_use(self._unstored):
            return _LOOK_AGAIN  # there is a new one already
        now = asyncio.get_running_loop().time()
        share = RENEWAL_SHARE + _SPREAD * (self._place_in_spread - 0.5)
        by_age = self._stored.renewal_due(share, self._clock()) - self._clock()
        return max(min(by_age, self._renew_by_order - now), self._not_before - now)

    def request(self, wake: Callable[[], None]) -> bytes | None:
        """The certificate request to send now, in DER; None while there is nothing to ask for.

        None, too, while the key is being made; `wake` is called when it is.
        """
        if self._seconds_until_renewal() > 0:
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
            holds = await asyncio.to_thread(check_pair, key.key, chain, self._host_id)
        except CredentialsError as error:
            self._fail(str(error))
            return False
        self._new_key = None
        self._renew_by_order = float("inf")
        self._not_before = asyncio.get_running_loop().time() + _RETRY[0]
        self._renewing.settle()
        self._place_in_spread = self._draw()
        log.info("certificate renewed, it holds until %s", holds.until)
        on_disk = self._unstored.replaces if self._unstored else self._stored.chain if self._stored else b""
        self._unstored = _Unstored(key.key, chain, holds, self._clock(), replaces=on_disk)
        self._store_at = 0.0
        if await self._store_what_is_not():
            return True
        return self._stored is not None and self._is_of_no_more_use(self._stored)

    async def trust(self, bundle: bytes, renew_within: int) -> None:
        """Trust these CA certificates from the next stream on, and renew within so many milliseconds if any."""
        now = asyncio.get_running_loop().time()
        if renew_within > 0:
            order = now + self._draw() * renew_within / 1000
            self._renew_by_order = min(self._renew_by_order, order)
        try:
            if await asyncio.to_thread(self._files.trust, bundle):
                self._prove_at = min(self._prove_at, now + self._draw() * _PROVE_WITHIN)
                self._trusting.settle()
                log.info("the collector's CA certificates were replaced, as it asked")
        except CredentialsError as error:
            problem = f"{error}; those that were trusted until now still are"
            log.log(self._trusting.level(problem), "%s", problem)

    def close(self) -> None:
        """Make no more keys."""
        if self._making is not None:
            self._making.cancel()

    async def _store_what_is_not(self) -> bool:
        """Store what the disk did not take before, if it is time; whether that makes a difference."""
        unstored, now = self._unstored, asyncio.get_running_loop().time()
        if unstored is None or now < self._store_at:
            return False
        self._store_at = now + _STORE_AGAIN
        try:
            await asyncio.to_thread(self._store_pair, unstored)
        except CredentialsError as error:
            problem = (
                f"the renewed certificate is in memory only: {error}; it is tried again, and does not survive"
                " a restart"
            )
            log.log(self._renewing.level(problem), "%s", problem)
            return False
        self._unstored = None
        self._renew_by_order = float("inf")  # the next stream tells whether it is of the right CA
        if self._renewing.settle():
            log.info("the renewed certificate is stored")
        return not self._is_in_use(unstored)

    def _store_pair(self, unstored: _Unstored) -> None:
        """Raises CredentialsError."""
        try:
            if self._files.load(self._host_id).chain != unstored.replaces:
                return  # this machine was enrolled again meanwhile
        except CredentialsError:
            pass  # what is damaged cannot be worth more
        self._files.store_pair(unstored.key, unstored.chain, self._host_id)

    def _is_in_use(self, unstored: _Unstored) -> bool:
        return self._stored is not None and self._stored.chain == unstored.chain

    def _is_of_no_more_use(self, stored: Stored) -> bool:
        """Whether a certificate that the disk has is to make way for one that it has not."""
        begin, end = stored.validity
        return self._is_refused or self._clock() > end - _LAST_SHARE * (end - begin)

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
        log.log(self._renewing.level(problem), "certificate not renewed: %s", problem)
