"""Visitors that lead nowhere."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from collector.identity.visits import Visits
from collector.store.store import Store
from fleetpulse.enrolment import fetch_trust
from tests.collector.enrolment.calls import has_fetched
from tests.collector.enrolment.records import own_ca
from tests.collector.enrolment_site import EnrolmentSite, application, refusal
from tests.processes import wait_until


def test_nobody_stays_connected(sqlite_site: EnrolmentSite) -> None:
    """Whatever it does: say nothing, trickle, begin HTTP/2 and idle, or call again and again."""
    with ThreadPoolExecutor(6) as threads:
        lasted = {
            name: threads.submit(how, sqlite_site)
            for name, how in {
                "silent": stay_silent,
                "silent after TLS": lambda site: stay_idle(site, b""),
                "idle": lambda site: stay_idle(site, HTTP2),
                "trickling": lambda site: trickle(site, b"", HTTP2),
                "trickling a request": lambda site: trickle(site, HTTP2, ENDLESS),
                "calling": keep_calling,
            }.items()
        }
        seconds = {name: future.result() for name, future in lasted.items()}
    assert all(span < 15 for span in seconds.values()), seconds


HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
ENDLESS = b"\0\x20\0\1\4\0\0\0\1" + bytes(8192)  # HEADERS of a request


def connect(site: EnrolmentSite) -> socket.socket:
    return socket.create_connection(("127.0.0.1", site.port), timeout=20)


def over_tls(site: EnrolmentSite) -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=site.keyring.current.bundle.decode())
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(connect(site), server_hostname="localhost")


def until_closed(connection: socket.socket, began: float) -> float:
    with connection:
        try:
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - began


def stay_silent(site: EnrolmentSite) -> float:
    began = time.monotonic()
    return until_closed(connect(site), began)


def stay_idle(site: EnrolmentSite, opening: bytes) -> float:
    began = time.monotonic()
    connection = over_tls(site)
    connection.sendall(opening)
    return until_closed(connection, began)


def trickle(site: EnrolmentSite, opening: bytes, rest: bytes) -> float:
    """Send the rest byte by byte."""
    began = time.monotonic()
    with over_tls(site) as connection:
        connection.sendall(opening)
        connection.settimeout(0.2)
        for byte in rest:
            try:
                connection.sendall(bytes([byte]))
                while connection.recv(4096):
                    pass
                break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - began


def keep_calling(site: EnrolmentSite) -> float:
    """How long one connection serves call after call; the channel makes another one then."""
    with site.channel() as channel:
        wait_until(lambda: has_fetched(channel) and len(site.calls) > 1, seconds=25)
    return max(times[-1] - times[0] for times in site.calls.values())


def test_who_begins_and_resets_calls_without_end_shuts_nobody_out(site: EnrolmentSite) -> None:
    """And is thrown out, although it reads nothing of what it is told."""
    with ThreadPoolExecutor(1) as threads:
        lasted = threads.submit(reset_calls, site)
        answers = 0
        while not lasted.done():
            with site.channel() as channel:
                assert fetch_trust(channel, 10) == site.keyring.current.bundle
            answers += 1
        assert lasted.result() < 18
    assert answers > 1


def reset_calls(site: EnrolmentSite) -> float:
    """Begin calls and reset them at once, as many as go, until the connection is closed or 20 s are over."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": "/fleetpulse.v1.EnrolmentService/GetTrust",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    # Literal header fields without indexing (RFC 7541, 6.2.2).
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    began = time.monotonic()
    with over_tls(site) as connection:
        connection.sendall(HTTP2 + frame(4, 1, 0, b""))  # SETTINGS, acknowledged
        try:
            for first in itertools.count(1, 100):
                connection.sendall(
                    b"".join(
                        frame(1, 4, stream, block) + frame(3, 0, stream, b"\0\0\0\x08")  # HEADERS, RST_STREAM
                        for stream in range(first, first + 100, 2)
                    )
                )
                if time.monotonic() - began > 20:
                    break
        except OSError:
            pass
    return time.monotonic() - began


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def test_who_asks_for_the_certificates_and_leaves_is_an_event(sqlite_store: Store, tmp_path: Path) -> None:
    """As whoever has a wrong fingerprint, or calls the collector by a name that is not in its certificate."""
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), visit=0.5) as site:
        for _ in range(3):
            with site.channel() as channel:
                fetch_trust(channel, 10)
        site.enroll(application(site.token()))  # one of them, as far as can be told
        refusal(lambda: site.enroll(application("nonsense")))  # and another
        wait_until(lambda: len(site.events("enrolment-refused")) == 2)
        left = max(site.events("enrolment-refused"), key=lambda event: event.number)
        assert "asked for the CA certificates and left: wrong fingerprint, or a name" in left.message
        assert "(from 127.0.0.1)" in left.message
        assert site.counts == {"enrolled": 1, "enrolment_refused": 2}


def test_a_flood_of_visitors_fills_neither_memory_nor_the_events(sqlite_store: Store, tmp_path: Path) -> None:
    left: list[str] = []

    async def flood() -> int:
        visits = Visits(left.append, patience=600)
        for number in range(5_000):
            visits.begin(f"address {number}")
        visits.end("address 4999")
        visits.end("address 0")  # which is not waited for any more
        return len(visits._waiting)

    assert asyncio.run(flood()) == 511
    assert left == [f"address {number}" for number in range(5_000 - 512)]
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), visit=0.01) as site, site.channel() as channel:
        for _ in range(100):
            wait_until(lambda: has_fetched(channel), what="the certificates")
        wait_until(lambda: site.counts["enrolment_refused"] == 100)
        wait_until(lambda: len(site.events()) >= 10)
        assert len(site.events()) <= 12
