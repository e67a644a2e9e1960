"""Who does not become a host, and why."""

from __future__ import annotations

import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest
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
from collector.store.store import Store, open_store
from fleetpulse.enrolment import EnrolRequest, fetch_trust
from tests.collector.enrolment.calls import call_raw
from tests.collector.enrolment.records import known, own_ca
from tests.collector.enrolment_site import EnrolmentSite, application, csr, refusal

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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_bytes_that_make_no_sense_are_refused_and_counted(sqlite_site: EnrolmentSite, data: bytes) -> None:
    counted = sqlite_site.counts["enrolment_refused"]
    status, text = refusal(lambda: call_raw(sqlite_site, data))
    assert status == "INVALID_ARGUMENT"
    assert "not an enrolment" in text
    assert sqlite_site.counts["enrolment_refused"] == counted + 1


def test_large_messages_and_other_calls_are_refused(sqlite_site: EnrolmentSite) -> None:
    assert refusal(lambda: call_raw(sqlite_site, bytes(40_000)))[0] == "RESOURCE_EXHAUSTED"
    for call in ("/fleetpulse.v1.IngestService/Stream", "/grpc.health.v1.Health/Check"):
        with sqlite_site.channel() as channel:
            method = channel.unary_unary(call)
            assert refusal(lambda method=method: method(b"", timeout=20))[0] == "UNIMPLEMENTED"  # type: ignore[misc] - cannot infer it


def test_a_flood_of_refusals_leaves_few_events(sqlite_site: EnrolmentSite) -> None:
    for _ in range(40):
        refusal(lambda: sqlite_site.enroll(application("nonsense")))
    assert sqlite_site.counts["enrolment_refused"] == 40
    assert 10 <= len(sqlite_site.events("enrolment-refused")) < 15


def test_who_is_refused_too_often_has_to_wait(sqlite_store: Store, tmp_path: Path) -> None:
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), rate=6, clock=lambda: 0.0) as site:
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
    with EnrolmentSite(sqlite_store, own_ca(tmp_path), rate=3, clock=lambda: 0.0) as site:
        token = site.token(uses=30) if good else make_token()

        def attempt(number: int) -> str:
            try:
                site.enroll(application(token, hostname=f"web-{number}"))
            except grpc.RpcError as error:
                return str(error.code().name)  # type: ignore[attr-defined] - it is a call
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
