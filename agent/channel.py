"""What an agent asks of gRPC: to notice a dead connection in time, and nothing that costs for nothing."""

from __future__ import annotations

import grpc
import grpc.aio

from agent.credential_files import Stored

_CHANNEL_OPTIONS = (
    # Measuring the bandwidth takes pings. One that stays without an answer would hold the keepalive's
    # own ping back for a minute.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", 64 << 20),  # the collector's Welcome sets the bound that counts
    ("grpc.max_receive_message_length", 1 << 20),
    # A retry would send a Hello twice; delivery repeats whole streams instead, at its own pace.
    ("grpc.enable_retries", 0),
    # A channel serves one stream, and another one is opened at delivery's own pace. This one is not to try
    # again by itself, even if something keeps it from going away.
    ("grpc.initial_reconnect_backoff_ms", 600_000),
    ("grpc.max_reconnect_backoff_ms", 600_000),
    # Channels to one address would share a connection. For many agents in one process, each has its own.
    ("grpc.use_local_subchannel_pool", 1),
    # The collector is on the site's own network; a proxy for the web is not the way there.
    ("grpc.enable_http_proxy", 0),
)

_PING_AFTER = (11_000, 30_000)  # milliseconds; the collector ends a connection that pings every 10 s
_PING_TIMEOUT = (5_000, 10_000)


def open_channel(target: str, interval: int, stored: Stored | None) -> grpc.aio.Channel:
    """A channel to the collector with these credentials, None: in plaintext; see `channel_options`."""
    options = channel_options(interval)
    if stored is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(stored.roots, stored.key, stored.chain)
    return grpc.aio.secure_channel(target, credentials, options=options)


def channel_options(interval: int) -> tuple[tuple[str, int], ...]:
    """For an agent that reports every `interval` milliseconds.

    A connection is pinged after an interval and a quarter without a word, which between two reports does
    not happen: each ping wakes gRPC's threads some fifty times. It is given up when no answer comes within
    half an interval: whatever is half-open ends before two are over, if they are 11 s or longer.
    """
    patience = _within_bounds(interval // 2, _PING_TIMEOUT)
    return (
        ("grpc.keepalive_time_ms", _within_bounds(interval * 5 // 4, _PING_AFTER)),
        ("grpc.keepalive_timeout_ms", patience),
        ("grpc.http2.ping_timeout_ms", patience),
        *_CHANNEL_OPTIONS,
    )


def _within_bounds(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])
