"""A real collector with TLS: what it makes, what it refuses to start with, and what it takes up while it runs."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from collector.identity.authority import Authority, fingerprint_of, names_of
from tests.processes import PROGRAMS, Program, Site, clean_environ, wait_until

UNAVAILABLE, CONFIG = 69, 78


def ended(site: Site, **settings: str) -> tuple[int, str]:
    """Run a collector that does not get far: its exit code, and the last line it says."""
    done = subprocess.run(
        [PROGRAMS / "fleet-collector"],
        env=clean_environ(
            {
                "FLEETPULSE_DATABASE": site.database_url,
                "FLEETPULSE_IDENTITY_DIR": str(site.identity_dir),
                "FLEETPULSE_LISTEN": "127.0.0.1:0",
                **{f"FLEETPULSE_{name.upper()}": value for name, value in settings.items()},
            }
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def logged(program: Program, event: str) -> dict[str, str]:
    line: dict[str, str] = json.loads(program.wait_for_log(f'"event": "{event}"'))
    return line


def shown_certificate(address: str) -> x509.Certificate:
    host, _, port = address.rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())


def test_plaintext_on_every_address_ends_at_once(tmp_path: Path, sqlite_site: Site) -> None:
    status, line = ended(sqlite_site, listen="0.0.0.0:18443", tls="off")
    assert status == CONFIG
    assert "0.0.0.0:18443 is reachable from other machines, and plaintext is allowed only on loopback" in line


def test_a_first_start_makes_a_ca_and_the_next_ones_keep_it(sqlite_site: Site) -> None:
    first = sqlite_site.collector(tls="on")
    fingerprint = logged(first, "made a CA")["fingerprint"]
    assert logged(first, "listening")["enroll_address"] == sqlite_site.enroll_address
    assert fingerprint == sqlite_site.json("ca", "show")["fingerprint"]
    assert first.log.count(fingerprint) == 1
    assert first.stop() == 0
    assert "PRIVATE" not in first.log
    second = sqlite_site.collector(tls="on")
    assert logged(second, "the CA")["fingerprint"] == fingerprint
    assert second.stop() == 0


def test_a_running_collector_takes_up_another_ca_and_counts_who_has_no_certificate(sqlite_site: Site) -> None:
    collector = sqlite_site.collector(tls="on", identity_names="fleet.example")
    assert "fleet.example" in names_of(shown_certificate(sqlite_site.enroll_address))
    sqlite_site.cli("ca", "rotate", check=True)
    [new, old] = [one["fingerprint"] for one in sqlite_site.json("ca", "show")["authorities"]]
    assert collector.wait_for_log("certificates replaced")
    sqlite_site.cli("ca", "finish", check=True)
    [ca] = x509.load_pem_x509_certificates(sqlite_site.ca_bundle.read_bytes())
    assert fingerprint_of(ca).hex() == new != old
    wait_until(lambda: shown_certificate(sqlite_site.enroll_address).issuer == ca.subject)
    assert sqlite_site.json("doctor")["state"] == "OK"
    with secured(sqlite_site.address) as connection, suppress(ssl.SSLError):
        assert connection.read() == b""
    assert collector.stop() == 0
    assert logged(collector, "stopped")["unauthenticated"] == 1


def secured(address: str) -> ssl.SSLSocket:
    """A connection without a certificate, which TLS 1.3 does not refuse before somebody reads."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection((host, int(port)), 10)
    return context.wrap_socket(raw)


def test_a_certificate_that_lives_for_seconds_is_renewed(sqlite_site: Site) -> None:
    sqlite_site.collector(tls="on", identity_server_lifetime="3s")
    seen = {shown_certificate(sqlite_site.enroll_address).serial_number}
    wait_until(
        lambda: seen.add(shown_certificate(sqlite_site.enroll_address).serial_number) or len(seen) == 2
    )
    assert sqlite_site.json("ca", "show")["changing"] is False


def test_no_enrolment(sqlite_site: Site) -> None:
    collector = sqlite_site.collector(tls="on", identity_enroll_listen="off")
    assert logged(collector, "listening")["enroll_address"] == ""
    assert collector.stop() == 0


def test_an_enrolment_port_in_use(sqlite_site: Site) -> None:
    sqlite_site.upgrade()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, line = ended(sqlite_site, identity_enroll_listen=address)
    assert status == UNAVAILABLE
    assert f"cannot listen on {address}: another program has the port" in line


def open_key(folder: Path) -> None:
    (folder / "ca.key").chmod(0o644)


def other_key(folder: Path) -> None:
    (folder / "ca.key").write_bytes(Authority.create(1_800_000_000_000).key_pem)


def no_key(folder: Path) -> None:
    (folder / "ca.key").unlink()


def unknown_kind_of_key(folder: Path) -> None:
    """Which shows only when the public key is asked for."""
    path = folder / "ca.pem"
    der = x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
    der = der.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0209"))
    path.write_text(ssl.DER_cert_to_PEM_cert(der))


def no_certificate(folder: Path) -> None:
    (folder / "ca.pem").write_text("nothing")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (open_key, r"ca\.key is open to others \(mode 0644\); run: chmod 600 /"),
        (other_key, r"ca\.key: no key of the first certificate in /.*/ca\.pem"),
        (no_key, r"the CA's key: cannot read /.*/ca\.key: No such file or directory"),
        (unknown_kind_of_key, r"ca\.pem: holds a certificate that cannot be used: Unknown key type"),
        (no_certificate, r"ca\.pem: holds no certificate in PEM"),
    ],
)
def test_files_that_cannot_be_used(sqlite_site: Site, spoil: Callable[[Path], None], said: str) -> None:
    sqlite_site.upgrade()
    sqlite_site.cli("ca", "init", check=True)
    spoil(sqlite_site.identity_dir)
    status, line = ended(sqlite_site)
    assert status == CONFIG
    assert line.startswith("fleet-collector: ")
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"identity_key": "/x"}, "identity.certificate and identity.key belong together"),
        ({"identity_ca_key": "/x"}, "set that too"),
        ({"identity_ca_bundle": "/x"}, "nothing can be signed here"),
        ({"identity_names": "ok.example,not ok"}, "'not ok' is neither a DNS name nor an IP address"),
        (
            {"identity_names": "fe80::1%eth0"},
            "'fe80::1%eth0' has a scope, which no certificate can hold; write 'fe80::1'",
        ),
        ({"listen": "127.0.0.1:65535"}, "there is no port after 65535"),
        ({"tls": "maybe"}, "expected on or off"),
    ],
)
def test_settings_that_make_no_sense(sqlite_site: Site, settings: dict[str, str], said: str) -> None:
    status, line = ended(sqlite_site, **settings)
    assert status == CONFIG
    assert said in line
