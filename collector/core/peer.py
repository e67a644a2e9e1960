"""Who is at the other end of a connection. Pure."""

from __future__ import annotations

from urllib.parse import unquote


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer, without the port: "ipv6:%5B::1%5D:4711" is "::1".

    A unix socket has none: "unix".
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind in ("ipv4", "ipv6"):
        return rest.rpartition(":")[0].strip("[]")
    return kind
