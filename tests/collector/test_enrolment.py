"""How machines become hosts: over real TLS, on both kinds of database."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import ssl
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.config import Identity
from collector.core.identity import Bearer, RenewalRefused
from collector.core.peer import address_of
from collector.identity import attempts as attempts_module
from collector.identity.attempts import Attempts
from collector.identity.keyring import Keyring
from collector.identity.tokens import make_token
from collector.identity.visits import Visits
from collector.store.certificates import (
    CertificateRow,
    add_certificate,
    load_certificates,
    lock_certificates,
    revoke_host,
    supersede,
)
from collector.store.clerk import Busy, Clerk
from collector.store.conflicts import ConflictRow, load_conflicts, save_conflict
from collector.store.dialect import SeenRow
from collector.store.errors import StoreConflict
from collector.store.hosts import StoredHost, add_hosts, find_hosts, remove_host
from collector.store.records import rebind, revoke
from collector.store.schema import upgrade
from collector.store.statuses import load_statuses, write_seen
from collector.store.store import Store, Transaction, open_store
from collector.store.tokens import StoredToken, spend_token
from fleetpulse.enrolment import EnrolRequest, fetch_trust, urn_of
from tests.collector.enrolment_site import EnrolmentSite, application, csr, refusal
from tests.collector.fleet import record
from tests.mariadb_server import MariadbServer
from tests.processes import wait_until

MINUTE = 60_000


def own_ca(folder: Path) -> Identity:
    return Identity(dir=folder / "identity")


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Iterator[EnrolmentSite]:
    with EnrolmentSite(store, own_ca(tmp_path)) as site:
        yield site


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/fleet.db", pool_size=4, create=True)
    upgrade(store, lambda: 0)
    yield store
    store.close()


def stored(site: EnrolmentSite, host_id: str) -> StoredHost:
    with site.store.transaction(write=False) as tx:
        return find_hosts(tx, [host_id])[host_id]


def known(site: EnrolmentSite, *, seen_ago: int | None = None, **changes: object) -> StoredHost:
    """A record that is there already, and reported so many milliseconds ago, if ever."""
    there = record(**{"hardware_id": "hardware", **changes})  # type: ignore[arg-type]
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


# --- becoming a host ---


def test_a_machine_becomes_a_host(site: EnrolmentSite) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = application(site.token(groups=("web", "rack 3")), hostname="Web-1", csr=csr(key))
    enrolled = site.enroll(request)
    assert (enrolled.name, enrolled.ca_bundle) == ("Web-1", site.keyring.current.bundle)
    certificate = x509.load_pem_x509_certificates(enrolled.chain)[0]
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [urn_of(request.host_id)]
    found = stored(site, request.host_id)
    assert (found.name, found.assigned) == ("Web-1", ("rack 3", "web"))
    assert found.record.groups == ("rack 3", "web")
    assert (found.record.address, found.record.interval, found.record.ttl) == ("127.0.0.1", 15_000, 45_000)
    assert (found.record.machine_id, found.record.hardware_id) == ("machine", "hardware")
    [row] = certificates(site, found.host)
    assert row.fingerprint == fingerprint(enrolled.chain)
    assert row.issuer == site.keyring.current.server_issuer_fingerprint
    assert row.is_valid(site.now)
    [event] = site.events()
    assert (event.kind, event.host_id, event.hostname) == ("enrolled", request.host_id, "Web-1")
    assert "from 127.0.0.1" in event.message
    assert row.fingerprint.hex()[:16] in event.message
    assert site.counts == {"enrolled": 1}


def test_the_ca_bundle_is_public(site: EnrolmentSite) -> None:
    with site.channel() as channel:
        assert fetch_trust(channel, 10) == site.keyring.current.bundle


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


def has_fetched(channel: grpc.Channel) -> bool:
    """Whether a call was taken.

    The port ends every connection after a while, and calls of that moment with it. A call right after
    another on the same connection may be refused, too: see `create_enrolment_server`.
    """
    try:
        fetch_trust(channel, 10)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined] - the stubs do not know that a call's error is a call
            raise
        return False
    return True


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


def test_only_so_many_get_in_at_once(site: EnrolmentSite) -> None:
    token = site.token(uses=10)

    def attempt(number: int) -> str:
        try:
            site.enroll(application(token, hostname=f"web-{number}"))
        except grpc.RpcError as error:
            return str(error.details())  # type: ignore[attr-defined]
        return "in"

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(attempt, range(20)))
    assert answers.count("in") == 10
    assert sum("used up" in answer for answer in answers) == 10
    assert site.query("SELECT COUNT(*) FROM host") == [(10,)]
    assert site.query("SELECT COUNT(*) FROM certificate") == [(10,)]
    assert site.counts == {"enrolled": 10, "enrolment_refused": 10}


def test_two_machines_with_one_uuid_at_once_become_one_host(site: EnrolmentSite) -> None:
    token, host_id = site.token(uses=2), str(uuid.uuid4())
    requests = [application(token, host_id=host_id, hostname=name) for name in ("one", "two")]

    def attempt(request: EnrolRequest) -> str:
        try:
            return site.enroll(request).name
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(2) as threads:
        answers = set(threads.map(attempt, requests))
    assert "ALREADY_EXISTS" in answers
    assert len(answers) == 2
    assert site.query("SELECT uses_left FROM enrolment_token") == [(1,)]


# --- refusals ---

Prepare = Callable[[EnrolmentSite], EnrolRequest]


def malformed_csr(site: EnrolmentSite) -> EnrolRequest:
    return application(site.token(), csr=b"\x30\x03\x02\x01\x00")


def weak_csr(site: EnrolmentSite) -> EnrolRequest:
    return application(site.token(), csr=csr(ec.generate_private_key(ec.SECP192R1())))


def tampered_csr(site: EnrolmentSite) -> EnrolRequest:
    request = csr()
    return application(site.token(), csr=request[:-1] + bytes([request[-1] ^ 1]))


def expired(site: EnrolmentSite) -> EnrolRequest:
    return application(site.token(expires_at=site.now - 90_000))


def used_up(site: EnrolmentSite) -> EnrolRequest:
    token = site.token(uses=2)
    for number in range(2):
        site.enroll(application(token, hostname=f"web-{number}"))
    return application(token)


def known_uuid(site: EnrolmentSite) -> EnrolRequest:
    return application(site.token(), host_id=known(site, hostname="db-7").record.host_id)


def known_uuid_of_another(site: EnrolmentSite) -> EnrolRequest:
    one, other = known(site, hostname="one"), known(site, hostname="other")
    return application(
        site.token(hostname="one", host=one.host), hostname="one", host_id=other.record.host_id
    )


def alive_elsewhere(site: EnrolmentSite) -> EnrolRequest:
    there = known(site, hostname="web-1", hardware_id="that", seen_ago=59_000)
    return application(site.token(hostname="web-1", host=there.host), hardware_id="this")


REFUSALS: list[tuple[Prepare, str, list[str]]] = [
    (lambda _: application("hunter2"), "UNAUTHENTICATED", ["this is no token", "fpt_"]),
    (lambda _: application("fpt_" + "a" * 43), "UNAUTHENTICATED", ["not known here", "token create"]),
    (expired, "UNAUTHENTICATED", ["expired 90 s ago", "token create"]),
    (used_up, "UNAUTHENTICATED", ["good for 2 uses", "used up"]),
    (
        lambda site: application(site.token(hostname="web-2")),
        "PERMISSION_DENIED",
        ["for web-2", "called web-1", "token create --host web-1"],
    ),
    (known_uuid, "ALREADY_EXISTS", ["known as db-7", "token create --host db-7", "--new-identity"]),
    (known_uuid_of_another, "ALREADY_EXISTS", ["known as other", "rebind one other"]),
    (alive_elsewhere, "ALREADY_EXISTS", ["alive on another machine at 192.0.2.7", "60 s later"]),
    (malformed_csr, "INVALID_ARGUMENT", ["certificate request"]),
    (weak_csr, "INVALID_ARGUMENT", ["P-256"]),
    (tampered_csr, "INVALID_ARGUMENT", ["not signed with its own key"]),
]


@pytest.mark.parametrize(("prepare", "status", "words"), REFUSALS)
def test_each_refusal_says_why(
    site: EnrolmentSite, capsys: pytest.CaptureFixture[str], prepare: Prepare, status: str, words: list[str]
) -> None:
    request = prepare(site)
    before = site.query("SELECT SUM(uses_left) FROM enrolment_token")
    hosts = site.query("SELECT COUNT(*) FROM host")
    said, text = refusal(lambda: site.enroll(request))
    assert said == status
    for word in words:
        assert word in text
    logged = capsys.readouterr().out
    assert "enrolment refused" in logged
    for said_anywhere in (text, logged, repr(request)):
        assert request.token not in said_anywhere
    [event] = site.events("enrolment-refused")
    assert (event.host_id, event.hostname) == (None, request.hostname)
    assert event.message == f"{text} (from 127.0.0.1)"
    assert site.counts["enrolment_refused"] == 1
    # It cost nothing: no use of a token, no record, no certificate.
    assert site.query("SELECT SUM(uses_left) FROM enrolment_token") == before
    assert site.query("SELECT COUNT(*) FROM host") == hosts
    assert site.query("SELECT COUNT(*) FROM certificate") == [(site.counts["enrolled"],)]


RAW = "/fleetpulse.v1.EnrolmentService/Enroll"


def call_raw(site: EnrolmentSite, data: bytes) -> object:
    """Call Enroll with these bytes. Raises grpc.RpcError."""
    with site.channel() as channel:
        return channel.unary_unary(RAW)(data, timeout=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_bytes_that_make_no_sense_are_refused_and_counted(sqlite_site: EnrolmentSite, data: bytes) -> None:
    counted = sqlite_site.counts["enrolment_refused"]
    status, text = refusal(lambda: call_raw(sqlite_site, data))
    assert status == "INVALID_ARGUMENT"
    assert "not an enrolment" in text
    assert sqlite_site.counts["enrolment_refused"] == counted + 1


@pytest.fixture
def sqlite_site(sqlite_store: Store, tmp_path: Path) -> Iterator[EnrolmentSite]:
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), rate=100_000) as site:
        yield site


def test_large_messages_and_other_calls_are_refused(sqlite_site: EnrolmentSite) -> None:
    assert refusal(lambda: call_raw(sqlite_site, bytes(40_000)))[0] == "RESOURCE_EXHAUSTED"
    for call in ("/fleetpulse.v1.IngestService/Stream", "/grpc.health.v1.Health/Check"):
        with sqlite_site.channel() as channel:
            method = channel.unary_unary(call)
            assert refusal(lambda method=method: method(b"", timeout=20))[0] == "UNIMPLEMENTED"  # type: ignore[misc]


def test_a_flood_of_refusals_leaves_few_events(sqlite_site: EnrolmentSite) -> None:
    for _ in range(40):
        refusal(lambda: sqlite_site.enroll(application("nonsense")))
    assert sqlite_site.counts["enrolment_refused"] == 40
    assert 10 <= len(sqlite_site.events("enrolment-refused")) < 15


def test_who_is_refused_too_often_has_to_wait(sqlite_store: Store, tmp_path: Path) -> None:
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), rate=6) as site:
        token = site.token(uses=30)
        for number in range(20):  # successes cost nothing
            site.enroll(application(token, hostname=f"web-{number}"))
        answers = [refusal(lambda: site.enroll(application("nonsense"))) for _ in range(20)]
        assert [status for status, _ in answers] == ["UNAUTHENTICATED"] * 13 + ["RESOURCE_EXHAUSTED"] * 7
        assert "too many refused attempts from 127.0.0.1; try again in 10 s" in answers[-1][1]
        assert refusal(lambda: site.enroll(application(token)))[0] == "RESOURCE_EXHAUSTED"
        assert refusal(lambda: call_raw(site, b"?"))[0] == "RESOURCE_EXHAUSTED"
        assert site.counts == {"enrolled": 20, "enrolment_refused": 13, "enrolment_limited": 9}
        assert any("too many" in event.message for event in site.events("enrolment-refused"))


def test_refusals_are_counted_by_address() -> None:
    now = 0.0
    attempts = Attempts(60, lambda: now)

    def refuse(address: str) -> None:
        assert attempts.begin(address) == 0
        attempts.end(address, refused=True)

    for _ in range(121):
        refuse("192.0.2.1")
    assert attempts.begin("192.0.2.1") == pytest.approx(1)
    assert attempts.begin("::ffff:192.0.2.1") == pytest.approx(1)
    assert attempts.begin("192.0.2.2") == 0
    for number in range(121):
        refuse(f"2001:db8::{number:x}")
    assert attempts.begin("2001:db8::ffff:1") == pytest.approx(1)  # the same network, so perhaps one machine
    assert attempts.begin("2001:db8:0:1::1") == 0
    now = 2
    assert attempts.begin("192.0.2.1") == 0


def test_attempts_at_once_count_before_they_are_refused() -> None:
    attempts = Attempts(10, lambda: 0.0)
    assert [attempts.begin("192.0.2.1") for _ in range(256)].count(0) == 21
    for _ in range(20):
        attempts.end("192.0.2.1", refused=True)
    assert attempts.begin("192.0.2.1") > 0
    assert attempts.is_undecided("192.0.2.1")
    attempts.end("192.0.2.1", refused=False)
    assert not attempts.is_undecided("192.0.2.1")
    assert attempts.begin("192.0.2.1") == 0


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
def test_many_behind_one_address_at_once(sqlite_store: Store, tmp_path: Path, *, good: bool) -> None:
    """Good ones take turns and all get in; of bad ones no more are heard than may be refused."""
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), rate=3) as site:
        token = site.token(uses=30) if good else make_token()

        def attempt(number: int) -> str:
            try:
                site.enroll(application(token, hostname=f"web-{number}"))
            except grpc.RpcError as error:
                return str(error.code().name)  # type: ignore[attr-defined]
            return "in"

        with ThreadPoolExecutor(30) as threads:
            answers = Counter(threads.map(attempt, range(30)))
    assert answers == ({"in": 30} if good else {"UNAUTHENTICATED": 7, "RESOURCE_EXHAUSTED": 23})


def test_who_asks_for_the_ca_too_often_is_slowed_down_and_not_refused(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "_ASKED_AT_ONCE", 5)
    monkeypatch.setattr(attempts_module, "_ASKED_PER_SECOND", 0.001)
    with EnrolmentSite(sqlite_store, own_ca(tmp_path)) as site:
        times = []
        for _ in range(6):
            began = time.monotonic()
            with site.channel() as channel:
                assert fetch_trust(channel, 5) == site.keyring.current.bundle
            times.append(time.monotonic() - began)
    assert max(times[:5]) < times[5]
    assert times[5] >= 0.8


def test_what_is_not_told_is_told_with_the_next() -> None:
    now = 0.0
    attempts = Attempts(60, lambda: now)
    told = [attempts.tell("used_token") for _ in range(14)]
    assert told == [0] * 10 + [None] * 4
    assert attempts.tell("malformed") == 0
    now = 10
    assert attempts.tell("used_token") == 4


def test_addresses() -> None:
    assert address_of("ipv4:192.0.2.1:4711") == "192.0.2.1"
    assert address_of("ipv6:%5B2001:db8::1%5D:4711") == "2001:db8::1"
    assert address_of("unix:/run/x") == "unix"
    assert address_of("") == ""


def test_without_a_ca_key_nobody_enrols(sqlite_store: Store, tmp_path: Path) -> None:
    """As on a second collector, which has the site's certificate for itself and only the CA's bundle."""
    first = Keyring(own_ca(tmp_path), lambda: ["127.0.0.1"])
    first.open()
    second = tmp_path / "second"
    second.mkdir(0o700)
    shutil.copy(first.places.bundle_path, second / "ca.pem")
    with EnrolmentSite(
        sqlite_store,
        Identity(dir=second, certificate=first.places.certificate_path, key=first.places.key_path),
    ) as site:
        status, text = refusal(lambda: site.enroll(application(site.token())))
        assert (status, "no CA key" in text) == ("FAILED_PRECONDITION", True)
        assert site.desk.trust.issuer == b""
        with pytest.raises(RenewalRefused, match="no CA key"):
            site.run(site.desk.renew(Bearer(1, str(uuid.uuid4()), "x", b"f"), csr()))


def test_a_database_that_is_away(tmp_path: Path) -> None:
    with (
        closing(open_store("mysql://nobody@127.0.0.1:1/none", pool_size=1)) as store,
        EnrolmentSite(store, own_ca(tmp_path)) as site,
    ):
        status, text = refusal(lambda: site.enroll(application(make_token())))
        assert status == "UNAVAILABLE"
        assert "cannot reach its database; try again" in text
        assert not site.counts
        # What makes no sense is refused without the database, too.
        assert refusal(lambda: site.enroll(application("nonsense")))[0] == "UNAUTHENTICATED"


# --- taking over a record ---


def test_a_token_for_a_known_host_gives_its_record_to_the_machine(site: EnrolmentSite) -> None:
    there = known(site, hostname="web-1", machine_id="before", seen_ago=2 * MINUTE)
    with site.store.transaction() as tx:
        save_conflict(tx, ConflictRow(there.host, b"p" * 16, "web-1", "a", "m", "h", "b", "i", 1, 1))
        before = load_statuses(tx, [there.host])[there.host]
    first = site.enroll(application(site.token(host=there.host), machine_id="between"))
    request = application(site.token(hostname="WEB-1", host=there.host, groups=("new",)), machine_id="after")
    enrolled = site.enroll(request)
    assert enrolled.name == "web-1"
    found = stored(site, request.host_id)
    assert (found.host, found.assigned) == (there.host, ("new",))
    assert (found.record.machine_id, found.record.boot_id, found.record.collector) == ("after", "", "")
    rows = {row.fingerprint: row for row in certificates(site, there.host)}
    assert rows[fingerprint(enrolled.chain)].revoked_at is None
    assert rows[fingerprint(first.chain)].revoked_at is not None
    with site.store.transaction(write=False) as tx:
        assert load_conflicts(tx) == {}
        after = load_statuses(tx, [there.host])[there.host]
    assert (after.status.epoch, after.status.seq) == (0, 0)
    assert after.status.received_at == before.status.received_at
    assert after.version > before.version  # what another collector remembers of the host is old now
    assert [event.kind for event in site.events()] == ["enrolled", "enrolled"]


def test_a_host_enrols_again_as_itself(site: EnrolmentSite) -> None:
    request = application(site.token())
    first = site.enroll(request)
    host = stored(site, request.host_id).host
    with site.store.transaction() as tx:
        write_seen(tx, [SeenRow(host, 0, 7, 3, site.now - 1, site.now, 0)])  # alive, and the same machine
        revoke_host(tx, host, site.now)
    again = application(site.token(hostname="web-1", host=host), host_id=request.host_id)
    second = site.enroll(again)
    rows = {row.fingerprint: row.revoked_at is None for row in certificates(site, host)}
    assert rows == {fingerprint(first.chain): False, fingerprint(second.chain): True}
    with site.store.transaction(write=False) as tx:
        status = load_statuses(tx, [host])[host].status
    assert (status.epoch, status.seq) == (7, 3)  # its agent goes on counting where it was


def test_a_renamed_record_is_known_by_both_names(site: EnrolmentSite) -> None:
    there = known(site, hostname="web-1")
    with site.store.transaction() as tx:
        tx.execute("UPDATE host SET hostname = 'lab-3', own_name = 'web-1'")
    assert site.enroll(application(site.token(hostname="lab-3", host=there.host))).name == "lab-3"
    assert site.enroll(application(site.token(hostname="lab-3", host=there.host), hostname="LAB-3"))
    refused = application(site.token(hostname="lab-3", host=there.host), hostname="web-2")
    assert refusal(lambda: site.enroll(refused))[0] == "PERMISSION_DENIED"


def test_a_removed_host_enrols_again_with_its_uuid(site: EnrolmentSite) -> None:
    request = application(site.token(uses=2))
    site.enroll(request)
    host = stored(site, request.host_id).host
    with site.store.transaction() as tx:
        assert remove_host(tx, host)
    assert site.query("SELECT COUNT(*) FROM certificate") == [(0,)]
    site.enroll(request)
    assert len(certificates(site, stored(site, request.host_id).host)) == 1


# --- renewal ---


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


# --- connections that lead nowhere ---


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
    assert all(span < 10 for span in seconds.values()), seconds


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
        assert lasted.result() < 12
    assert answers > 10


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


# --- the clerk ---


def test_the_queue_is_bounded_and_the_impatient_are_not_served(sqlite_site: EnrolmentSite) -> None:
    clerk = Clerk(sqlite_site.store, "test", 1)
    done: list[str] = []

    async def crowd() -> None:
        begun, hold = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(_: Transaction) -> bool:
            loop.call_soon_threadsafe(begun.set)
            return hold.wait(20)

        first = asyncio.create_task(clerk.run(slow))
        await begun.wait()
        second = asyncio.create_task(clerk.run(lambda _: done.append("second")))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="busy, try again"):
            await clerk.run(lambda _: done.append("third"))
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        hold.set()
        assert await first

    sqlite_site.run(crowd())
    clerk.close(5)
    assert done == []


def test_conflicts_are_repeated_for_a_while(sqlite_site: EnrolmentSite) -> None:
    clerk = Clerk(sqlite_site.store, "test", 1)
    tries: list[int] = []

    def work(_: Transaction) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise StoreConflict("again")
        return "done"

    def hopeless(_: Transaction) -> None:
        raise StoreConflict("again")

    assert sqlite_site.run(clerk.run(work)) == "done"
    with pytest.raises(StoreConflict):
        sqlite_site.run(clerk.run(hopeless))
    clerk.close(5)
