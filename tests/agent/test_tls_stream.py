"""Delivery over real TLS: which credentials are used, how they are renewed, and what is said when it fails."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from agent.backoff import Backoff
from agent.certificate import pem_blocks
from agent.credential_files import CredentialFiles, Enrolment
from agent.credentials import Credentials
from agent.delivery import Delivery
from agent.key_process import KeyProcessError, NewKey
from agent.keys import make_key_and_request
from agent.memory_spool import MemorySpool
from agent.refusal import noted_refusal
from agent.stream import Timeouts
from fleetpulse import convert
from tests.agent.pki import Ca
from tests.agent.scripted_collector import Script, serving, until
from tests.agent.test_stream import FAST, HELLO, fill, run

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make_key_here() -> NewKey:
    key, csr = make_key_and_request()
    return NewKey(key, pem_blocks(csr, "CERTIFICATE REQUEST")[0])


def server_credentials(ca: Ca, trusted: Ca | None = None, **certificate: Any) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [ca.server(**certificate)], (trusted or ca).pem, require_client_auth=True
    )


def enrolled(folder: Path, ca: Ca, begin: float = -60, end: float = 3600, age: float = 0) -> CredentialFiles:
    """`age`: seconds since the certificate was stored."""
    files = CredentialFiles(folder)
    files.store_bundle(ca.pem)
    files.store_pair(*ca.host(HELLO.host_id, None, begin, end), HELLO.host_id)
    files.store_enrolment(Enrolment(collector="127.0.0.1:1"))
    os.utime(folder / "host.pem", (time.time() - age,) * 2)
    return files


def due(folder: Path, ca: Ca) -> CredentialFiles:
    """Credentials that are to be renewed at once, and hold for long enough on the slowest machine."""
    return enrolled(folder, ca, begin=-1000, end=300, age=900)


@asynccontextmanager
async def delivering(
    port: int,
    spool: MemorySpool,
    files: CredentialFiles,
    host: str = "127.0.0.1",
    backoff: Backoff = FAST,
    **options: Any,
) -> AsyncIterator[Delivery]:
    options = {"make_key": make_key_here} | options
    delivery = Delivery(
        f"{host}:{port}",
        spool,
        HELLO,
        Timeouts(welcome=5, ack=5),
        credentials=Credentials(files, HELLO.host_id, **options),
        backoff=backoff,
        refused_delay=0.05,
    )
    task = asyncio.create_task(delivery.run())
    try:
        yield delivery
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def test_reports_travel_with_the_hosts_certificate(tmp_path: Path) -> None:
    async def test() -> None:
        ca = Ca()
        files = enrolled(tmp_path, ca)
        spool, script = MemorySpool(), Script()
        fill(spool, 5)
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            delivering(port, spool, files),
        ):
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == [1, 2, 3, 4, 5]
        assert script.hellos[0].trust_id == files.load(HELLO.host_id).trust_id
        [shown] = script.shown
        assert serial(shown) == serial(files.load(HELLO.host_id).chain)

    run(test)


def test_a_certificate_is_renewed_in_time_again_and_again_and_no_report_is_lost(tmp_path: Path) -> None:
    async def test() -> None:
        ca = Ca()
        files = due(tmp_path, ca)
        spool = MemorySpool()
        script = Script(certify=lambda host_id, csr: ca.host(host_id, csr)[1])
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            # By a clock that is ahead, so that each is soon to be renewed in turn.
            delivering(port, spool, files, clock=lambda: time.time() + 3000) as delivery,
        ):

            def append_until_renewed() -> bool:
                fill(spool, 1)
                delivery.wake()
                return len(set(map(serial, script.shown))) >= 4

            await until(append_until_renewed, 20)
            await until(lambda: spool.pending() == 0)
        assert script.seqs() == list(range(1, spool.last_seq + 1))
        assert [r.values[0] for r in script.reports.values()] == list(range(spool.last_seq))
        assert len(script.hellos) == len(set(map(serial, script.shown))), "one stream a certificate"
        assert len(script.csrs) == len(script.hellos) - 1

    run(test)


def test_an_idle_agent_renews_too(tmp_path: Path) -> None:
    async def test() -> None:
        ca = Ca()
        files = due(tmp_path, ca)
        script = Script(certify=lambda host_id, csr: ca.host(host_id, csr)[1])
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: len(script.hellos) == 2)
        assert files.load(HELLO.host_id).validity.not_after > time.time() + 1000

    run(test)


def test_the_batch_in_flight_is_acked_before_the_stream_is_changed(tmp_path: Path) -> None:
    async def test() -> None:
        ca = Ca()
        files = due(tmp_path, ca)
        spool, script = MemorySpool(), Script(acks=False)
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            delivering(port, spool, files) as delivery,
        ):
            await until(lambda: len(script.csrs) == 1)
            fill(spool, 3)
            delivery.wake()
            await until(lambda: script.batches == [[1, 2, 3]])
            chain = ca.host(HELLO.host_id, script.csrs[0])[1]
            await script.say(convert.encode_certificate(chain))
            fill(spool, 1)
            delivery.wake()
            await asyncio.sleep(0.2)  # nothing is to happen
            assert (len(script.hellos), script.batches) == (1, [[1, 2, 3]])
            script.acks = True
            await script.say(convert.encode_ack(3))
            await until(lambda: spool.pending() == 0)
        assert script.batches == [[1, 2, 3], [4]]
        assert serial(script.shown[1]) == serial(chain)

    run(test)


def test_a_renewal_that_fails_is_tried_again_and_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        ca, tries = Ca(), 0
        files = enrolled(tmp_path, ca, end=4)
        before = files.load(HELLO.host_id)
        answers: list[Callable[[str, bytes], bytes]] = [
            lambda host_id, csr: b"",
            lambda host_id, csr: b"",
            lambda host_id, csr: ca.host(host_id)[1],  # of another key
            lambda host_id, csr: ca.host(NOBODY, csr)[1],
            lambda host_id, csr: b"garbage",
            lambda host_id, csr: ca.host(host_id, csr)[1],
        ]

        async def failing_first() -> NewKey:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise KeyProcessError("no memory")
            return await make_key_here()

        def answer(host_id: str, csr: bytes) -> bytes:
            return answers.pop(0)(host_id, csr)

        spool, script = MemorySpool(), Script(certify=answer)
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            # As if it had been stored long ago, so that it is time at once.
            delivering(port, spool, files, make_key=failing_first, clock=lambda: time.time() + 3) as delivery,
        ):
            await until(lambda: len(script.hellos) == 1)
            while answers:
                assert files.load(HELLO.host_id) == before
                assert len(script.hellos) == 1
                fill(spool, 1)
                delivery.wake()
                await until(lambda: spool.pending() == 0)
                count = len(answers)
                await until(lambda count=count: len(answers) < count)  # type: ignore[misc]
            await until(lambda: len(script.hellos) == 2)
        assert script.seqs() == list(range(1, spool.last_seq + 1))
        assert files.load(HELLO.host_id).chain != before.chain

    run(test)
    failures = [r.getMessage() for r in caplog.records if "certificate not renewed" in r.getMessage()]
    assert [text.partition("not renewed: ")[2].split(";")[0] for text in failures] == [
        "no new key: no memory",
        "the collector cannot issue one now",
        failures[2].partition("not renewed: ")[2].split(";")[0],
        f"the certificate that was issued: is not a certificate of this host, {HELLO.host_id}",
        "the certificate that was issued: there is no certificate (PEM)",
    ], "each once, though the second happened twice"
    assert "key and certificate do not belong together" in failures[2]
    assert "certificate renewed, it holds until" in caplog.text


def test_a_new_ca_is_trusted_and_its_certificate_asked_for(tmp_path: Path) -> None:
    async def test() -> None:
        old, new = Ca("old"), Ca("new")
        files = enrolled(tmp_path, old)
        bundle = new.pem + old.pem
        script = Script(certify=lambda host_id, csr: new.host(host_id, csr)[1])
        both = grpc.ssl_server_credentials([old.server()], bundle, require_client_auth=True)
        async with serving(script, credentials=both) as port, delivering(port, MemorySpool(), files):
            await until(lambda: len(script.hellos) == 1)
            before = script.hellos[0].trust_id
            await script.say(convert.encode_trust(bundle, 300))
            await until(lambda: len(script.hellos) == 2)
            stored = files.load(HELLO.host_id)
            assert stored.ca_bundle == bundle
            assert script.hellos[1].trust_id == stored.trust_id != before
        # The old CA is gone on both sides.
        only_new = server_credentials(new)
        async with (
            serving(script, credentials=only_new) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: len(script.hellos) == 3)

    run(test)


@pytest.mark.parametrize("bundle", [b"", b"garbage", Ca().pem.replace(b"M", b"N"), Ca().pem * 40])
def test_a_bundle_that_is_none_changes_nothing(
    tmp_path: Path, bundle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        ca = Ca()
        files = enrolled(tmp_path, ca)
        spool, script = MemorySpool(), Script()
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            delivering(port, spool, files) as delivery,
        ):
            await until(lambda: len(script.hellos) == 1)
            await script.say(convert.encode_trust(bundle, 0))
            await until(lambda: "the CA bundle that the collector sent cannot be used" in caplog.text)
            fill(spool, 1)
            delivery.wake()
            await until(lambda: spool.pending() == 0)
        assert files.load(HELLO.host_id).ca_bundle == ca.pem
        assert len(script.hellos) == 1

    run(test)


def test_a_wrong_ca_for_a_moment_locks_nobody_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        ca, wrong = Ca(), Ca("wrong")
        files = enrolled(tmp_path, ca)
        right_id, spool, script = files.load(HELLO.host_id).trust_id, MemorySpool(), Script()
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            delivering(port, spool, files, draw=lambda: 0.0) as delivery,
        ):
            await until(lambda: len(script.hellos) == 1)
            await script.say(convert.encode_trust(wrong.pem, 0))
            for count in (2, 3):  # found out soon; and again with each further stream
                await until(lambda count=count: script.welcomed == count)  # type: ignore[misc]
                assert script.hellos[-1].trust_id != right_id
                fill(spool, 1)
                delivery.wake()
                await until(lambda: spool.pending() == 0)
                await script.say(convert.encode_goodbye(0) if count == 2 else convert.encode_trust(ca.pem, 0))
            await until(lambda: script.welcomed == 4)
            assert script.hellos[-1].trust_id == right_id
            await until(lambda: not (tmp_path / "ca.previous.pem").exists())
        assert files.load(HELLO.host_id).roots == ca.pem

    run(test)
    assert caplog.text.count("is not of the CA that it had its agents trust last") == 1


def test_a_ca_that_was_replaced_is_trusted_no_more_once_the_new_one_has_proved_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        old, new = Ca("old"), Ca("new")
        files = enrolled(tmp_path, old)
        script = Script()
        async with (
            serving(script, credentials=server_credentials(old)) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: script.welcomed == 1)
            await script.say(convert.encode_trust(new.pem, 0))
            await until(lambda: files.load(HELLO.host_id).previous_bundle == old.pem)
        async with (
            serving(script, credentials=server_credentials(new, old)) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: script.welcomed == 2)
            await until(lambda: not files.load(HELLO.host_id).previous_bundle)
        async with (
            serving(script, credentials=server_credentials(old)) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: "is not of a CA that this machine trusts" in caplog.text)
        assert len(script.hellos) == 2

    run(test)


def test_a_host_whose_certificate_is_worth_nothing_is_told_what_to_do_and_notes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path, CA)
        chain = files.load(HELLO.host_id).chain
        script = Script(refuse_hello=(grpc.StatusCode.UNAUTHENTICATED, "this host's certificate has expired"))
        async with (
            serving(script, credentials=server_credentials(CA)) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: "expired" in noted_refusal(tmp_path, chain))
            await until(lambda: len(script.hellos) > 2)
            script.refuse_hello = None
            await until(lambda: not (tmp_path / "refused").exists())

    run(test)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "has expired (UNAUTHENTICATED); get a token for it (collector-cli token create --host NAME)" in line
    )
    assert "fleet-agent enroll --force" in line


def test_files_replaced_by_an_enrolment_are_used_by_the_next_stream(tmp_path: Path) -> None:
    async def test() -> None:
        ca = Ca()
        files = enrolled(tmp_path, ca)
        script = Script()
        async with (
            serving(script, credentials=server_credentials(ca)) as port,
            delivering(port, MemorySpool(), files),
        ):
            await until(lambda: len(script.hellos) == 1)
            enrolled(tmp_path, ca)
            await script.say(convert.encode_goodbye(0))
            await until(lambda: len(script.hellos) == 2)
        assert serial(script.shown[0]) != serial(script.shown[1]) == serial(files.load(HELLO.host_id).chain)

    run(test)


CA, OTHER = Ca(), Ca("other")


@pytest.mark.parametrize(
    ("server", "host", "own", "said"),
    [
        (server_credentials(OTHER, CA), "127.0.0.1", {}, "is not of a CA that this machine trusts"),
        (
            server_credentials(CA, names=("collector.example", "192.0.2.7", "2001:db8::7")),
            "127.0.0.1",
            {},
            "is not for 127.0.0.1:PORT but for collector.example, 192.0.2.7, 2001:db8::7; call it by",
        ),
        (server_credentials(CA, begin=-60, end=-10), "127.0.0.1", {}, "has expired, or this machine's clock"),
        # Made when the tests are collected, and used minutes later.
        (
            server_credentials(CA, begin=86_400, end=172_800),
            "127.0.0.1",
            {},
            "is not valid yet: this machine's clock",
        ),
        (server_credentials(CA, OTHER), "127.0.0.1", {}, "it does not accept this host's certificate"),
        (server_credentials(CA), "127.0.0.1", {"end": -10}, "this host's certificate expired on 20"),
        (server_credentials(CA), "127.0.0.1", {"begin": 500}, "this host's certificate begins to hold on 20"),
        (None, "127.0.0.1", {}, "does not speak TLS"),
    ],
)
def test_why_there_is_no_connection_is_said_in_words(
    server: grpc.ServerCredentials | None,
    host: str,
    own: dict[str, float],
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path, CA, **own)
        script = Script()
        async with serving(script, credentials=server) as port, delivering(port, MemorySpool(), files, host):
            await until(lambda: "ended" in caplog.text)
            assert said.replace("PORT", str(port)) in caplog.text
        assert not script.hellos

    run(test)


def test_a_plaintext_agent_at_a_port_with_tls(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(Script(), credentials=server_credentials(CA)) as port:
            delivery = Delivery(f"127.0.0.1:{port}", MemorySpool(), HELLO, backoff=FAST)
            task = asyncio.create_task(delivery.run())
            await until(lambda: "does the collector speak TLS?" in caplog.text)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(test)


def test_credentials_that_became_unusable_are_told_and_taken_when_they_are_good_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path, CA)
        spool, script = MemorySpool(), Script()
        fill(spool, 1)
        good = (tmp_path / "host.pem").read_bytes()
        (tmp_path / "host.pem").write_bytes(good[:-100])
        async with (
            serving(script, credentials=server_credentials(CA)) as port,
            delivering(port, spool, files),
        ):
            await until(lambda: "host.pem cannot be used" in caplog.text)
            (tmp_path / "host.pem").write_bytes(good)
            await until(lambda: spool.pending() == 0)

    run(test)
    assert caplog.text.count("host.pem cannot be used") == 1


def test_tries_over_tls_leave_nothing_behind(tmp_path: Path) -> None:
    """As those in plaintext: each has credentials of its own in the C library."""

    async def test() -> None:
        def used() -> tuple[int, int]:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * 4096, len(list(Path("/proc/self/fd").iterdir()))

        files = enrolled(tmp_path, CA)
        script = Script(refuse_hello=(grpc.StatusCode.UNAVAILABLE, "not now"))
        async with (
            serving(script, credentials=server_credentials(CA)) as port,
            delivering(port, MemorySpool(), files, backoff=Backoff(0.001, 0.001)),
        ):
            await until(lambda: len(script.hellos) > 100)
            before = used()
            await until(lambda: len(script.hellos) > 350, seconds=25)
            memory, open_files = (now - then for now, then in zip(used(), before, strict=True))
        assert memory < 8 << 20
        assert open_files < 20

    run(test)
