"""When a certificate is renewed, by clocks that agree and that do not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from agent.certificate import Validity
from agent.credential_files import CredentialFiles, CredentialsError, Stored
from agent.credentials import Credentials
from agent.key_process import KeyProcessError, NewKey, make_key, parse
from agent.keys import make_key_and_request
from agent.refusal import forget_refusal, note_refusal, noted_refusal
from tests.agent.pki import Ca

HOST = "6a7e1b0c-6f0d-4f6d-8f2b-0d6d5a9b1c11"
CA, OTHER, THIRD = Ca(), Ca("other"), Ca("third")
DAY = 86_400.0


def stored(begin: float, end: float, at: float) -> Stored:
    return Stored(b"", b"", b"", Validity(int(begin), int(end)), at)


class _Files(CredentialFiles):
    """What a test says is on disk."""

    def __init__(self, what: Stored) -> None:
        super().__init__(Path("/nowhere"))
        self.what = what

    def load(self, host_id: str) -> Stored:
        return self.what


async def no_key() -> NewKey:
    raise KeyProcessError("none today")


def due_at(what: Stored, draw: float = 0.5) -> float:
    """The first moment, by the machine's clock, at which a renewal is due."""
    now = what.stored_at

    async def find() -> float:
        nonlocal now
        credentials = Credentials(_Files(what), HOST, make_key=no_key, clock=lambda: now, draw=lambda: draw)
        await credentials.load()
        while (wait := credentials.seconds_until_request()) > 0:
            assert wait <= 600, "the clock is looked at again"
            now += wait
        return now

    return asyncio.run(find())


@pytest.mark.parametrize(
    ("begin", "end", "at", "expected"),
    [
        (-60, 90 * DAY, 0, 60 * DAY),
        (-60, 3, 0, 2),  # backdated by much more than it holds
        (0, 90 * DAY, 45 * DAY, 75 * DAY),  # copied here when it was half over
        (365 * DAY, 455 * DAY, 0, 60 * DAY),  # this machine's clock is a year behind
        (-455 * DAY, -365 * DAY, 0, 60 * DAY),  # or ahead
    ],
)
def test_it_is_due_at_two_thirds_of_its_time(begin: float, end: float, at: float, expected: float) -> None:
    base = 1_700_000_000.0
    due = due_at(stored(base + begin, base + end, base + at)) - base
    assert due == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("ahead", [0.5 * DAY, 40 * DAY, 200 * DAY])
def test_a_clock_that_was_ahead_and_is_right_again_puts_no_renewal_off(ahead: float) -> None:
    base = 1_700_000_000.0
    what = stored(base, base + 90 * DAY, base + ahead)
    assert what.renewal_due(2 / 3, now=base + ahead / 2) == pytest.approx(base + 60 * DAY, abs=2)


def test_a_fleet_does_not_renew_at_once() -> None:
    what = stored(0, 90 * DAY, 0)
    first, last = due_at(what, 0.0), due_at(what, 0.999)
    assert 5 * DAY < last - first < 6 * DAY
    assert first > 57 * DAY
    assert last < 63 * DAY


def test_a_failed_try_is_repeated_within_an_hour_and_sooner_for_short_lifetimes() -> None:
    async def wait_after_failure(lifetime: float) -> float:
        what = stored(0, lifetime, 0)
        credentials = Credentials(
            _Files(what), HOST, make_key=no_key, clock=lambda: lifetime, draw=lambda: 0.5
        )
        await credentials.load()
        woken = asyncio.Event()
        assert credentials.request(woken.set) is None
        await asyncio.wait_for(woken.wait(), 5)
        assert credentials.request(woken.set) is None
        return credentials._not_before - asyncio.get_running_loop().time()

    assert asyncio.run(wait_after_failure(90 * DAY)) == pytest.approx(3600, rel=0.05)
    assert asyncio.run(wait_after_failure(600)) == pytest.approx(60, rel=0.05)
    assert asyncio.run(wait_after_failure(3)) == pytest.approx(0.5, rel=0.1)


def test_an_order_to_renew_counts_right_after_a_renewal_and_outlasts_the_stream(tmp_path: Path) -> None:
    async def test() -> None:
        files = CredentialFiles(tmp_path)
        files.store_bundle(CA.pem)
        files.store_pair(*CA.host(HOST), HOST)
        (tmp_path / "host.pem").touch()
        ahead = 0.0
        credentials = Credentials(files, HOST, clock=lambda: time.time() + ahead)
        before = await credentials.load()
        assert credentials.seconds_until_request() == 600
        ahead = 3000.0
        woken = asyncio.Event()
        assert credentials.request(woken.set) is None
        await asyncio.wait_for(woken.wait(), 20)
        csr = credentials.request(woken.set)
        assert csr is not None
        assert credentials.request(woken.set) is None, "asked for once"
        assert await credentials.accept(CA.host(HOST, csr)[1])
        ahead = 0.0
        assert (await credentials.load()).key != before.key
        await credentials.trust(CA.pem, 1)
        await credentials.load()
        assert credentials.seconds_until_request() < 1

    asyncio.run(test())


def test_a_key_of_a_process_of_its_own() -> None:
    key, csr = asyncio.run(make_key())
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert key.rstrip().endswith(b"-----END PRIVATE KEY-----")
    assert csr[0] == 0x30
    with pytest.raises(KeyProcessError, match="something else than one certificate request"):
        parse(b"garbage")


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(KeyProcessError, match=r"it ended with 1: .*(encodings|Python)"):
        asyncio.run(make_key())


def test_what_is_stored_is_whole_and_the_owners_alone(tmp_path: Path) -> None:
    files = CredentialFiles(tmp_path)
    files.store_bundle(CA.pem)
    key, chain = CA.host(HOST)
    files.store_pair(key, chain + CA.pem, HOST)
    good = files.load(HOST)
    assert (good.key.strip(), good.chain, good.ca_bundle) == (key.strip(), chain + CA.pem, CA.pem)
    for wrong_key, wrong_chain, said in (
        (CA.host(HOST)[0], chain, "do not belong together"),
        (b"", chain, "no private key"),
        (key, b"", "there is no certificate"),
        (key, CA.pem, "is not a certificate of this host"),
    ):
        with pytest.raises(CredentialsError, match=said):
            files.store_pair(wrong_key, wrong_chain, HOST)
    assert files.load(HOST) == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.pem", "host.pem"], "nothing is left aside"
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    files = CredentialFiles(tmp_path)
    files.store_bundle(CA.pem)
    files.store_pair(*CA.host(HOST), HOST)
    own = (tmp_path / "host.pem").read_bytes()
    begin = own.index(b"-----BEGIN CERTIFICATE")
    (tmp_path / "host.pem").write_bytes(own[begin:] + own[:begin])
    with pytest.raises(CredentialsError, match=r"host\.pem: the key has to come before the certificates"):
        files.load(HOST)
    (tmp_path / "host.pem").write_bytes(own + b"\n" * (1 << 20))
    with pytest.raises(CredentialsError, match=r"host\.pem is larger than"):
        files.load(HOST)
    (tmp_path / "host.pem").unlink()
    (tmp_path / "host.pem").mkdir()
    with pytest.raises(CredentialsError, match=r"cannot read .*host\.pem: Is a directory"):
        files.load(HOST)
    with pytest.raises(CredentialsError, match=r"cannot store .*host\.pem: Is a directory"):
        files.store_pair(*CA.host(HOST), HOST)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def no_space(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.credential_files.write_aside", no_space)
        patch.setattr("agent.refusal.write_aside", no_space)
        yield


def enrolled(folder: Path, begin: float = -60, end: float = 3600) -> CredentialFiles:
    files = CredentialFiles(folder)
    files.store_bundle(CA.pem)
    files.store_pair(*CA.host(HOST, None, begin, end), HOST)
    return files


async def key_here() -> NewKey:
    made = make_key_and_request()
    return parse(made.key + made.request)


async def renewed(credentials: Credentials) -> tuple[bool, bytes]:
    """Have a certificate renewed that is due; whether it is to be used now, and which it is."""
    woken = asyncio.Event()
    assert credentials.request(woken.set) is None
    await asyncio.wait_for(woken.wait(), 5)
    csr = credentials.request(woken.set)
    assert csr is not None
    chain = CA.host(HOST, csr)[1]
    return await credentials.accept(chain), chain


def test_what_the_collector_takes_back_is_taken_back(tmp_path: Path) -> None:
    async def test() -> None:
        files = enrolled(tmp_path)
        credentials = Credentials(files, HOST, draw=lambda: 0.0)
        await credentials.load()
        await credentials.trust(CA.pem, 0)
        assert not await credentials.have_changed(), "no stream is ended for what was known"
        await credentials.trust(OTHER.pem, 0)
        await credentials.trust(THIRD.pem, 0)
        assert files.load(HOST).ca_bundle == THIRD.pem
        assert files.load(HOST).previous_bundle == CA.pem, "the last that has proved good"
        await credentials.trust(CA.pem, 0)
        assert files.load(HOST).ca_bundle == CA.pem
        assert not files.load(HOST).previous_bundle
        await credentials.trust(CA.pem, 0)
        assert not (tmp_path / "ca.previous.pem").exists()

    asyncio.run(test())


def test_a_new_ca_is_tried_alone_first_and_then_with_the_previous_one(tmp_path: Path) -> None:
    async def test() -> None:
        files = enrolled(tmp_path)
        credentials = Credentials(files, HOST, draw=lambda: 0.5)
        await credentials.load()
        assert not credentials.fall_back(), "nothing to fall back to"
        await credentials.trust(OTHER.pem, 0)
        assert not await credentials.have_changed()
        assert 100 < credentials.seconds_until_request() < 200, "tried soon, and not by all at once"
        alone = await credentials.load()
        assert alone.roots == OTHER.pem
        assert credentials.fall_back()
        both = await credentials.load()
        assert (both.roots.count(b"BEGIN"), both.trust_id) == (2, alone.trust_id)
        assert not credentials.fall_back(), "both have failed"
        await credentials.welcomed()
        assert files.load(HOST).previous_bundle == CA.pem, "which proves nothing of the new one"
        assert (await credentials.load()).roots == OTHER.pem
        await credentials.welcomed()
        assert not (tmp_path / "ca.previous.pem").exists()
        assert not (await credentials.load()).previous_bundle

    asyncio.run(test())


def test_a_bundle_without_a_ca_is_refused_and_the_order_to_renew_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path)
        credentials = Credentials(files, HOST, draw=lambda: 0.0)
        await credentials.load()
        await credentials.trust(CA.host(HOST)[1], 1)
        assert files.load(HOST).ca_bundle == CA.pem
        assert credentials.seconds_until_request() == 0
        await credentials.trust(CA.host(HOST)[1], 1)

    asyncio.run(test())
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        (
            "the CA bundle that the collector sent cannot be used: none of its certificates is a CA's; those that"
            " were trusted until now still are"
        )
    ]


def test_a_renewed_certificate_that_the_disk_does_not_take_is_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        files, ahead = enrolled(tmp_path), 2600.0
        credentials = Credentials(files, HOST, make_key=key_here, clock=lambda: time.time() + ahead)
        old = await credentials.load()
        with full_disk(monkeypatch):
            to_use, new = await renewed(credentials)
            assert not to_use, "the collector would forget the old one, the only one after a restart"
            for _ in range(3):
                assert (await credentials.load()).chain == old.chain
                assert credentials.request(lambda: None) is None, "no other is asked for"
                credentials._store_at = 0.0  # a minute later
                assert not await credentials.have_changed()
            assert 50 < credentials.seconds_until_request() <= 60
            ahead = 3500.0
            assert (await credentials.load()).chain == new, "the old one ends soon"
            ahead = 2600.0
            assert (await credentials.load()).chain == new, "it may be known to the collector by now"
        assert files.load(HOST).chain == old.chain
        credentials._store_at = 0.0
        assert not await credentials.have_changed(), "it is in use already"
        assert files.load(HOST).chain == new
        assert (await credentials.load()).chain == new

    asyncio.run(test())
    told = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert "the renewed certificate is stored" in caplog.text


def test_one_in_memory_is_used_when_the_old_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path)
        credentials = Credentials(files, HOST, make_key=key_here, clock=lambda: time.time() + 2600)
        await credentials.load()
        with full_disk(monkeypatch):
            _, new = await renewed(credentials)
            await credentials.refused("expired")
            assert (await credentials.load()).chain == new
            await credentials.welcomed()
            assert (await credentials.load()).chain == new

    asyncio.run(test())


@pytest.mark.parametrize("is_stored_first", [False, True])
def test_an_enrolment_is_worth_more_than_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stored_first: bool
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path)
        credentials = Credentials(files, HOST, make_key=key_here, clock=lambda: time.time() + 2600)
        await credentials.load()
        with full_disk(monkeypatch):
            await renewed(credentials)
        enrolled(tmp_path)
        chosen = files.load(HOST).chain
        if is_stored_first:
            credentials._store_at = 0.0
            assert await credentials.have_changed()
        assert (await credentials.load()).chain == files.load(HOST).chain == chosen

    asyncio.run(test())


def test_a_refusal_is_noted_for_one_certificate_until_a_welcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        files = enrolled(tmp_path)
        credentials = Credentials(files, HOST)
        chain = (await credentials.load()).chain
        with full_disk(monkeypatch):
            await credentials.refused("revoked")  # and nothing fails
        assert noted_refusal(tmp_path, chain) == ""
        await credentials.refused("revoked\nby an admin")
        assert noted_refusal(tmp_path, chain) == "revoked by an admin"
        assert noted_refusal(tmp_path, CA.host(HOST)[1]) == "", "another certificate"
        await credentials.welcomed()
        assert noted_refusal(tmp_path, chain) == ""

    asyncio.run(test())
    note_refusal(tmp_path, CA.pem, "")
    assert noted_refusal(tmp_path, CA.pem) == "no reason given"
    with contextlib.suppress(FileNotFoundError):
        forget_refusal(tmp_path)
        forget_refusal(tmp_path)
    (tmp_path / "refused").write_bytes(b"\xff" * 100_000)
    assert noted_refusal(tmp_path, CA.pem) == ""
