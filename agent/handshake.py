"""Why a TLS connection to the collector failed, in words that say what to do.

gRPC tells what its TLS library said, and of a refusal by the other side only that the connection was closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Sequence

from agent.certificate import utc
from agent.credential_files import Stored
from agent.refusal import ENROL_AGAIN
from agent.target import Endpoint, parse_endpoint

_NAMES_TIMEOUT = 5.0  # seconds
MAX_NAMES = 20
"""Names of a certificate that a message lists."""


def is_name_mismatch(details: str) -> bool:
    """Whether gRPC's words mean a server whose certificate is for other names."""
    return "Hostname Verification Check failed" in details


def is_distrust(details: str) -> bool:
    """Whether gRPC's words mean a server whose certificate is of no CA that is trusted."""
    is_of_time = "certificate is not yet valid" in details or "certificate has expired" in details
    return "CERTIFICATE_VERIFY_FAILED" in details and not is_of_time


def explain(details: str, target: str, stored: Stored | None, names: Sequence[str], now: float) -> str:
    """What `details`, gRPC's words, mean; unchanged if they speak for themselves.

    `stored` are the credentials that were used, None: the connection was plaintext. `names` are those in the
    server's certificate, as far as they are known. `now` in seconds.
    """
    was_closed = "failed to connect" in details and ("Socket closed" in details or "reset by peer" in details)
    if stored is None:
        if was_closed:
            return f'{target} closed the connection; does the collector speak TLS? then leave tls at "on"'
        return details
    if is_name_mismatch(details):
        shown = ", ".join(names[:MAX_NAMES]) or "other names"
        return (
            f"the collector's certificate is not for {target} but for {shown}; call it by one of these, or"
            " add the name to identity.names in the collector's configuration"
        )
    if "certificate is not yet valid" in details:
        return f"the collector's certificate is not valid yet: this machine's clock, {utc(now)}, may be wrong"
    if "certificate has expired" in details:
        return (
            "the collector's certificate has expired, or this machine's clock is wrong:"
            f" it says {utc(now)} ({details})"
        )
    if is_distrust(details):
        return (
            f"the certificate that {target} shows is not of a CA that this machine trusts: somebody else"
            " answers there, or the collector has a new CA; then enrol this machine again:"
            " fleet-agent enroll --force"
        )
    if "WRONG_VERSION_NUMBER" in details:
        return f'what listens at {target} does not speak TLS (tls = "off" on the collector?)'
    if was_closed:
        if stored.validity.not_after < now:
            return f"this host's certificate expired on {stored.validity.until}; {ENROL_AGAIN}"
        if stored.validity.not_before > now:
            return (
                f"the connection was closed in the TLS handshake, and this host's certificate begins to hold"
                f" on {utc(stored.validity.not_before)}: this machine's clock, {utc(now)}, may be wrong"
            )
        return (
            "the collector closed the connection in the TLS handshake: it does not accept this host's"
            " certificate (its CA was replaced, or the collector's clock says it is expired), or it is just"
            " stopping; to enrol again: fleet-agent enroll --force"
        )
    return details


async def explained(details: str, target: str, stored: Stored | None, now: float) -> str:
    """`explain`, once the collector's names are found out if they matter. Takes seconds at most."""
    names = []
    if stored is not None and is_name_mismatch(details):
        names = await _names_of_server(parse_endpoint(target), stored)
    return explain(details, target, stored, names, now)


async def _names_of_server(endpoint: Endpoint, stored: Stored) -> list[str]:
    """The names in the certificate of who answers there, if a trusted CA signed it; empty if not found out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
        context.load_verify_locations(cadata=stored.roots.decode())
        async with asyncio.timeout(_NAMES_TIMEOUT):
            _, writer = await asyncio.open_connection(
                endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.host
            )
            writer.close()
            shown = writer.get_extra_info("peercert") or {}
            return [_as_people_write_it(str(name)) for _, name in shown.get("subjectAltName", ())]
    return []


def _as_people_write_it(name: str) -> str:
    """An IPv6 address comes with all its zeros."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name
