"""What enrolment has stored, and short ways to make more of it."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from collector.config import Identity
from collector.store.certificates import (
    CertificateRow,
    load_certificates,
)
from collector.store.dialect import SeenRow
from collector.store.hosts import StoredHost, add_hosts, find_hosts
from collector.store.statuses import write_seen
from tests.collector.enrolment_site import EnrolmentSite
from tests.collector.fleet import record

MINUTE = 60_000


def own_ca(folder: Path) -> Identity:
    return Identity(dir=folder / "identity")


def stored(site: EnrolmentSite, host_id: str) -> StoredHost:
    with site.store.transaction(write=False) as tx:
        return find_hosts(tx, [host_id])[host_id]


def known(site: EnrolmentSite, *, seen_ago: int | None = None, **changes: object) -> StoredHost:
    """A record that is there already, and reported so many milliseconds ago, if ever."""
    there = record(**{"hardware_id": "hardware", **changes})  # type: ignore[arg-type] - any of its fields
    with site.store.transaction() as tx:
        add_hosts(tx, [there], site.now)
    found = stored(site, there.host_id)
    if seen_ago is not None:
        with site.store.transaction() as tx:
            write_seen(tx, [SeenRow(found.host, 0, 7, 3, site.now - seen_ago, site.now, 0)])
    return found


def certificates(site: EnrolmentSite, host: int) -> list[CertificateRow]:
    with site.store.transaction(write=False) as tx:
        return load_certificates(tx, [host]).get(host, [])


def fingerprint(chain: bytes) -> bytes:
    return x509.load_pem_x509_certificates(chain)[0].fingerprint(hashes.SHA256())
