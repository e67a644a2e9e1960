"""Tells agents whom to trust: each after its Welcome, and all of them when that changes."""

from __future__ import annotations

import asyncio
import math

from collector.core.identity import TrustedCas
from collector.ingest.credentials import Credentials
from collector.ingest.sessions import Session, Sessions
from fleetpulse import convert

_AT_ONCE = 50  # sessions that are told in one turn of the loop
_TURN = 0.05  # seconds between two turns
_RENEWALS_PER_SECOND = 50
_RENEW_LEAST, _RENEW_MOST = 1.0, 3_600.0  # seconds over which renewals are spread


class TrustTeller:
    """Keeps the agents' trust as it is here. Used on one event loop only."""

    def __init__(self, sessions: Sessions, credentials: Credentials):
        self._sessions = sessions
        self._credentials = credentials
        self._telling: asyncio.Task[None] | None = None

    async def greet(self, session: Session) -> None:
        """Tell one that has been welcomed, unless it knows and has nothing to do about it."""
        trust = self._credentials.trust
        if session.fingerprint and (session.trust_id != trust.trust_id or _is_outgoing(session, trust)):
            await session.send(self._message(session, trust))

    def tell_all(self) -> None:
        """Tell everybody, because the trusted CAs have changed; a few at a time."""
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.create_task(self._tell_all(self._credentials.trust))

    async def _tell_all(self, trust: TrustedCas) -> None:
        sessions = [session for session in self._sessions.all() if session.fingerprint]
        for start in range(0, len(sessions), _AT_ONCE):
            for session in sessions[start : start + _AT_ONCE]:
                if not session.is_over:
                    session.send_aside(self._message(session, trust))
            await asyncio.sleep(_TURN)

    def _message(self, session: Session, trust: TrustedCas) -> convert.StreamResponse:
        spread = min(max(len(self._sessions) / _RENEWALS_PER_SECOND, _RENEW_LEAST), _RENEW_MOST)
        session.trust_id = trust.trust_id
        renew_within = math.ceil(spread * 1000) if _is_outgoing(session, trust) else 0
        return convert.encode_trust(trust.bundle, renew_within)


def _is_outgoing(session: Session, trust: TrustedCas) -> bool:
    """Whether another CA than the one that signed the session's certificate signs now."""
    return bool(trust.issuer) and session.issuer != trust.issuer
