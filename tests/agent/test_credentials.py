"""When a certificate is renewed, by clocks that agree and that do not."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path

import pytest

from agent.certificate import Validity
from agent.credential_files import CredentialFiles, CredentialsError, Stored
from agent.credentials import Credentials
from agent.key_process import KeyProcessError, NewKey, make_key, parse
from tests.agent.pki import Ca

HOST = "6a7e1b0c-6f0d-4f6d-8f2b-0d6d5a9b1c11"
CA = Ca()
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
