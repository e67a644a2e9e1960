"""How hosts come to their next certificates."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from collector.config import Identity
from collector.core.identity import Bearer, RenewalRefused
from collector.identity.keyring import Keyring
from collector.store.certificates import (
    add_certificate,
    load_certificates,
    lock_certificates,
    revoke_host,
    supersede,
)
from collector.store.records import rebind, revoke
from collector.store.schema import upgrade
from collector.store.store import Transaction, open_store
from collector.store.tokens import StoredToken, spend_token
from tests.collector.enrolment.records import MINUTE, certificates, fingerprint, known, own_ca, stored
from tests.collector.enrolment_site import EnrolmentSite, application, csr, refusal
from tests.mariadb_server import MariadbServer


def test_a_host_renews(site: EnrolmentSite) -> None:
    request = application(site.token())
    first = site.enroll(request)
    bearer = Bearer(stored(site, request.host_id).host, request.host_id, "web-1", fingerprint(first.chain))
    key = ec.generate_private_key(ec.SECP256R1())
    chain = site.run(site.desk.renew(bearer, csr(key)))
    certificate = x509.load_pem_x509_certificates(chain)[0]
    assert certificate.public_key() == key.public_key()
    assert fingerprint(chain) in {row.fingerprint for row in certificates(site, bearer.host)}
    [event] = site.events("renewed")
    assert (event.host_id, event.hostname) == (request.host_id, "web-1")
    assert fingerprint(chain).hex()[:16] in event.message


def test_who_may_not_renew(site: EnrolmentSite) -> None:
    request = application(site.token())
    first = site.enroll(request)
    bearer = Bearer(stored(site, request.host_id).host, request.host_id, "web-1", fingerprint(first.chain))

    def refused(bearer: Bearer, wanted: bytes) -> str:
        with pytest.raises(RenewalRefused) as error:
            site.run(site.desk.renew(bearer, wanted))
        return str(error.value)

    assert "not known here" in refused(bearer._replace(host_id=str(uuid.uuid4())), csr())
    assert "not known here" in refused(bearer._replace(host=bearer.host + 1), csr())
    assert "certificate request" in refused(bearer, b"nonsense")
    with site.store.transaction() as tx:
        revoke_host(tx, bearer.host, site.now)
    assert "not valid any more" in refused(bearer, csr())


def test_renewals_that_are_lost_do_not_end_renewal(site: EnrolmentSite) -> None:
    """A disk that is full for weeks: the agent cannot store what it gets, and asks again and again."""
    request = application(site.token())
    first = site.enroll(request)
    host = stored(site, request.host_id).host
    bearer = Bearer(host, request.host_id, "web-1", fingerprint(first.chain))
    renewed = [fingerprint(site.run(site.desk.renew(bearer, csr()))) for _ in range(20)]
    kept = [row.fingerprint for row in certificates(site, host)]
    assert kept == [*reversed(renewed[-15:]), bearer.fingerprint]
    # The last is as good as any, and its use ends all that.
    with site.store.transaction() as tx:
        assert supersede(tx, load_certificates(tx, [host])[host][0]) == 15
    last = bearer._replace(fingerprint=renewed[-1])
    assert site.run(site.desk.renew(last, csr()))


def test_a_certificate_is_newer_than_those_before_it_though_the_clock_was_set_back(
    site: EnrolmentSite,
) -> None:
    request = application(site.token())
    first = site.enroll(request)
    host = stored(site, request.host_id).host
    with site.store.transaction() as tx:
        tx.execute("UPDATE certificate SET issued_at = issued_at + %s", (MINUTE,))
    renewed = site.run(
        site.desk.renew(Bearer(host, request.host_id, "web-1", fingerprint(first.chain)), csr())
    )
    assert [row.fingerprint for row in certificates(site, host)] == [
        fingerprint(renewed),
        fingerprint(first.chain),
    ]


def test_the_ca_that_signs_is_the_one_of_that_moment(site: EnrolmentSite) -> None:
    """`ca rotate` between two looks at the files: what the old CA signs now is not counted any more."""
    elsewhere = Keyring(Identity(dir=site.keyring.places.folder), lambda: ["localhost", "127.0.0.1"])
    elsewhere.load()
    new = elsewhere.rotate().authority
    assert new is not None
    request = application(site.token())
    enrolled = site.run(site.desk.enroll(request, "192.0.2.1"))
    host = stored(site, request.host_id).host
    assert [row.issuer for row in certificates(site, host)] == [new.fingerprint]
    assert enrolled.ca_bundle == elsewhere.current.bundle
    newest = elsewhere.finish().authority
    assert newest is not None
    site.run(site.desk.renew(Bearer(host, request.host_id, "web-1", fingerprint(enrolled.chain)), csr()))
    assert {row.issuer for row in certificates(site, host)} == {newest.fingerprint}


def test_the_smallest_pool_serves_all_who_need_it(mariadb: MariadbServer, tmp_path: Path) -> None:
    """Two connections for a writer, the sweeper, enrolments and renewals: they take turns."""
    store = open_store(mariadb.fresh_database(), pool_size=3)
    upgrade(store, lambda: 0)
    over = threading.Event()
    turns: Counter[str] = Counter()

    def work(name: str) -> None:
        while not over.is_set():
            with store.transaction() as tx:
                tx.query("SELECT COUNT(*), SLEEP(0.01) FROM host")
            turns[name] += 1

    with EnrolmentSite(store, own_ca(tmp_path)) as site, ThreadPoolExecutor(24) as threads:
        token = site.token(uses=40)
        others = [threads.submit(work, name) for name in ("writer", "sweeper", "reader")]

        def live(number: int) -> int:
            request = application(token, hostname=f"web-{number}")
            chain = site.run(site.desk.enroll(request, f"192.0.2.{number}")).chain
            bearer = Bearer(stored(site, request.host_id).host, request.host_id, "web", fingerprint(chain))
            return [bool(site.run(site.desk.renew(bearer, csr()))) for _ in range(3)].count(True)

        try:
            assert list(threads.map(live, range(40))) == [3] * 40
        finally:
            over.set()
        for other in others:
            other.result(20)
    assert min(turns[name] for name in ("writer", "sweeper", "reader")) > 5
    assert store.pool_stats.timeouts == 0
    store.close()


@pytest.mark.parametrize("what", ["revoked", "rebound", "used"])
def test_a_token_that_ends_while_it_is_used(
    site: EnrolmentSite, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the look at it and its use; the machine is told what is the case."""
    machine = known(site, seen_ago=None)
    token = site.token(hostname="web-1", host=machine.host)
    request = application(token, host_id=machine.record.host_id)
    other = known(site, seen_ago=None, hostname="other")

    def end(tx: Transaction) -> None:
        if what == "revoked":
            revoke(tx, machine.host, "web-1", site.now)
        elif what == "rebound":
            rebind(tx, other.host, machine.host, site.now)
        else:
            tx.execute("UPDATE enrolment_token SET uses_left = 0")

    def spend_late(tx: Transaction, spent: StoredToken, now: int) -> bool:
        end(tx)
        return spend_token(tx, spent, now)

    monkeypatch.setattr("collector.identity.desk.spend_token", spend_late)
    said = refusal(lambda: site.enroll(request))[1]
    if what == "used":
        assert "is used up" in said
    else:
        assert "its host was revoked or rebound since" in said
        assert "token create --host web-1" in said


def test_a_revoked_certificate_is_not_renewed_beside_a_newer_one(site: EnrolmentSite) -> None:
    """Between the revocation and the end of its stream, a thief must not get the host's next certificate."""
    request = application(site.token())
    stolen = fingerprint(site.enroll(request).chain)
    host = stored(site, request.host_id).host
    token = site.token(hostname="web-1", host=host)
    second = site.enroll(application(token, host_id=request.host_id))
    thief = Bearer(host, request.host_id, "web-1", stolen)
    with pytest.raises(RenewalRefused, match="not valid any more"):
        site.run(site.desk.renew(thief, csr()))
    assert site.run(site.desk.renew(thief._replace(fingerprint=fingerprint(second.chain)), csr()))


def test_no_certificate_escapes_a_revocation_that_comes_meanwhile(site: EnrolmentSite) -> None:
    request = application(site.token())
    site.enroll(request)
    host = stored(site, request.host_id).host

    def revoke() -> int:
        with site.store.transaction() as tx:
            return revoke_host(tx, host, site.now)

    with ThreadPoolExecutor(1) as threads:
        with site.store.transaction() as tx:
            lock_certificates(tx, host)
            [row] = load_certificates(tx, [host])[host]
            revoked = threads.submit(revoke)
            with pytest.raises(TimeoutError):
                revoked.result(0.3)  # it waits for the renewal that has begun
            add_certificate(tx, row._replace(fingerprint=b"f" * 32, issued_at=row.issued_at + 1))
        assert revoked.result(20) == 2
    assert all(row.revoked_at for row in certificates(site, host))
