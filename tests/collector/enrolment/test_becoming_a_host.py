"""How machines become hosts: over real TLS, on both kinds of database."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from collector.store.certificates import (
    revoke_host,
)
from collector.store.conflicts import ConflictRow, load_conflicts, save_conflict
from collector.store.dialect import SeenRow
from collector.store.hosts import remove_host
from collector.store.statuses import load_statuses, write_seen
from fleetpulse.enrolment import EnrolRequest, fetch_trust, urn_of
from tests.collector.enrolment.records import MINUTE, certificates, fingerprint, known, stored
from tests.collector.enrolment_site import EnrolmentSite, application, csr, refusal

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


def test_only_so_many_get_in_at_once(site: EnrolmentSite) -> None:
    token = site.token(uses=10)

    def attempt(number: int) -> str:
        try:
            site.enroll(application(token, hostname=f"web-{number}"))
        except grpc.RpcError as error:
            return str(error.details())  # type: ignore[attr-defined] - it is a call
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
            return str(error.code().name)  # type: ignore[attr-defined] - it is a call

    with ThreadPoolExecutor(2) as threads:
        answers = set(threads.map(attempt, requests))
    assert "ALREADY_EXISTS" in answers
    assert len(answers) == 2
    assert site.query("SELECT uses_left FROM enrolment_token") == [(1,)]


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
