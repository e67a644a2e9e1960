"""The collector's own files: made, kept up to date, changed, and what is wrong with them."""

from __future__ import annotations

import base64
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from collector.config import Identity
from collector.identity import server_names
from collector.identity.authority import Authority, fingerprint_of, names_of, not_after_of, parse_keys
from collector.identity.key_files import Folder, KeyringError
from collector.identity.keyring import Keyring
from collector.identity.server_names import find_names
from tests.processes import ROOT

START = 1_800_000_000_000
HOUR = 3_600_000
DAY = 86_400
NAMES = ["localhost", "127.0.0.1"]


class Rig:
    """A keyring with a clock and names that the test sets."""

    def __init__(self, folder: Path, **settings: object):
        self.now = START
        self.names = list(NAMES)
        self.folder = folder / "identity"
        self.settings = {"dir": self.folder, **settings}
        self.keyring = self.another()

    def another(self) -> Keyring:
        return Keyring(Identity(**self.settings), lambda: self.names, lambda: self.now)  # type: ignore[arg-type]

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    assert rig.keyring.open()
    return rig


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Rig]:
    """A site's own files, and a collector that is to use them."""

    def make(*, key: bool = True, certificate: bool = True) -> Rig:
        ca = Authority.create(START)
        own, chain = ca.sign_server(NAMES, START, DAY)
        files = {"ca_bundle": ca.certificate_pem, "ca_key": ca.key_pem, "certificate": chain, "key": own}
        wanted = ["ca_bundle", *(["ca_key"] if key else []), *(["certificate", "key"] if certificate else [])]
        settings = {}
        for name in wanted:
            settings[name] = tmp_path / f"{name}.pem"
            settings[name].write_bytes(files[name])
            settings[name].chmod(0o640 if "key" in name else 0o644)
        return Rig(tmp_path, **settings)

    return make


def test_a_first_start_makes_everything_and_a_second_nothing(rig: Rig) -> None:
    assert rig.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in rig.folder.iterdir()} == dict.fromkeys(
        ("ca.pem", "ca.key", "server.pem", "lock"), 0o600
    )
    material = rig.keyring.current
    assert material.authority is not None
    assert material.server_issuer_fingerprint == material.authority.fingerprint
    assert names_of(material.server_certificate) == NAMES
    assert not_after_of(material.server_certificate) == START + 90 * DAY * 1000
    before = rig.files()
    assert not rig.another().open()
    assert rig.files() == before


def test_two_that_start_at_once_make_one_ca(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from collector.config import Identity; "
        "from collector.identity.keyring import Keyring; "
        "keyring = Keyring(Identity(dir=Path(sys.argv[1])), lambda: ['localhost']); sys.stdin.read(1); "
        "print(keyring.open(), keyring.current.trust_id.hex())"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "identity")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("x")
        starter.stdin.flush()
    told = [starter.communicate(timeout=60)[0].split() for starter in starters]
    assert sorted(made for made, _ in told) == ["False", "True"]
    assert len({trust_id for _, trust_id in told}) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_service(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    rig = Rig(tmp_path)
    rig.keyring.open()
    rig.keyring.rotate()
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [rig.folder, *rig.folder.iterdir()]}
    assert owners == {(4711, 4712)}


def test_a_first_start_that_was_cut_short_goes_on_with_its_key(rig: Rig) -> None:
    before = rig.keyring.current
    (rig.folder / "ca.pem").unlink()
    again = rig.another()
    assert again.open()
    assert again.current.trusted[0].public_key() == before.trusted[0].public_key()
    assert (rig.folder / "server.pem").read_bytes() == before.server_key + before.server_chain


def test_a_key_without_a_ca_that_is_none(rig: Rig) -> None:
    (rig.folder / "ca.pem").unlink()
    (rig.folder / "ca.key").write_text("nonsense")
    with pytest.raises(KeyringError, match=r"ca\.key: holds no private key"):
        rig.another().open()


def test_a_clock_that_was_set_back_does_not_leave_it_not_yet_valid(rig: Rig) -> None:
    rig.now -= HOUR
    assert rig.keyring.maintain()


def test_the_servers_certificate_is_renewed_at_two_thirds_of_its_life(rig: Rig) -> None:
    first = rig.keyring.current
    rig.now = START + 59 * 24 * HOUR
    assert not rig.keyring.maintain()
    rig.now = START + 61 * 24 * HOUR
    assert rig.keyring.maintain()
    assert rig.keyring.current.server_key != first.server_key
    assert rig.keyring.current.trust_id == first.trust_id
    assert not rig.keyring.maintain()


def test_it_is_made_anew_for_a_new_name_and_not_for_one_less(rig: Rig) -> None:
    rig.names.append("fleet.example")
    assert rig.keyring.maintain()
    assert set(names_of(rig.keyring.current.server_certificate)) == set(rig.names)
    rig.names.remove("127.0.0.1")
    assert not rig.keyring.maintain()


def test_names_that_come_and_go_have_it_made_anew_once_a_minute(rig: Rig) -> None:
    rig.names.append("a.example")
    assert rig.keyring.maintain()
    rig.names[-1] = "b.example"
    for _ in range(3):
        rig.now += 19_000
        assert not rig.keyring.maintain()
    rig.now += 19_000
    assert rig.keyring.maintain()
    assert "b.example" in names_of(rig.keyring.current.server_certificate)


def test_an_address_with_a_scope_is_not_missed_for_ever(rig: Rig) -> None:
    """A certificate holds it without."""
    rig.names.append("fe80::1%eth0")
    assert rig.keyring.maintain()
    assert "fe80::1" in names_of(rig.keyring.current.server_certificate)
    rig.now += HOUR
    assert not rig.keyring.maintain()


def test_it_is_made_anew_when_its_ca_is_another_one(rig: Rig) -> None:
    other = Authority.create(START)
    (rig.folder / "ca.key").write_bytes(other.key_pem)
    (rig.folder / "ca.pem").write_bytes(other.certificate_pem)
    again = rig.another()
    again.open()
    assert again.current.server_issuer_fingerprint == other.fingerprint


def test_a_ca_that_ends_soon_does_not_keep_it_busy(rig: Rig) -> None:
    authority = rig.keyring.current.authority
    assert authority is not None
    rig.now = authority.not_after - 1_000_000
    assert rig.keyring.maintain()
    rig.now = authority.not_after - 10_000
    assert not rig.keyring.maintain()
    rig.now = authority.not_after
    with pytest.raises(KeyringError, match=r"expired on .* enrol every machine again"):
        rig.another().load()


def test_what_is_replaced_is_used_and_what_is_broken_is_not(rig: Rig) -> None:
    watching, before = rig.another(), rig.keyring.current
    watching.load()
    assert not watching.refresh()
    rig.names.append("fleet.example")
    rig.keyring.maintain()
    assert watching.refresh()
    assert "fleet.example" in names_of(watching.current.server_certificate)
    replaced = watching.current
    (rig.folder / "server.pem").write_bytes(before.server_key + replaced.server_chain)
    with capture_logs() as logs:
        assert not watching.refresh()
        assert not watching.refresh()
    assert watching.current is replaced
    [line] = logs
    assert "not the key of the certificate in" in line["error"]
    assert watching.maintain()  # its own, so it can be made anew


def test_another_ca_at_once_would_lock_everybody_out(rig: Rig, tmp_path: Path) -> None:
    watching, other = rig.another(), Rig(tmp_path / "other")
    before, files = watching.load(), rig.files()
    other.keyring.open()
    for name, data in other.files().items():
        (rig.folder / name).write_bytes(data)
    with capture_logs() as logs:
        assert not watching.refresh()
        assert not watching.maintain()
    assert watching.current is before
    [line] = logs
    assert "no CA in common with the one in use" in line["error"]
    assert "collector-cli ca rotate" in line["error"]
    assert "restart" in line["error"]
    assert rig.another().load().trust_id == other.keyring.current.trust_id  # which is what a restart does
    # Beside the old one, as the message says.
    both = other.files()["ca.pem"] + files["ca.pem"]
    (rig.folder / "ca.pem").write_bytes(both)
    assert watching.maintain()
    assert len(watching.current.trusted) == 2


def test_a_ca_with_the_same_key_is_the_same(rig: Rig) -> None:
    watching, key = rig.another(), (rig.folder / "ca.key").read_bytes()
    before = watching.load()
    assert before.authority is not None
    rig.now += DAY * 1000
    name = before.authority.certificate.subject
    again = Authority.create(rig.now, key=parse_keys(key)[0])
    (rig.folder / "ca.pem").write_bytes(again.certificate_pem)
    assert again.certificate.subject == name
    assert watching.maintain()
    assert watching.current.trusted == (again.certificate,)


def test_what_could_not_be_read_once_is_read_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, for one: the file is as good as before."""
    from collector.identity import material as module

    def fail(path: Path, what: str, _: Folder | None = None) -> bytes:
        raise KeyringError(f"{what}: cannot read {path}: Too many open files")

    watching = rig.another()
    watching.load()
    rig.names.append("fleet.example")
    rig.keyring.maintain()
    monkeypatch.setattr(module, "read", fail)
    with capture_logs() as logs:
        assert not watching.refresh()
        assert not watching.refresh()
    assert len(logs) == 1
    monkeypatch.undo()
    assert watching.refresh()


def test_the_ca_is_changed_in_two_steps(rig: Rig) -> None:
    old = rig.keyring.current
    assert old.authority is not None
    both = rig.keyring.rotate()
    assert both.authority is not None
    assert [fingerprint_of(ca) for ca in both.trusted] == [
        both.authority.fingerprint,
        old.authority.fingerprint,
    ]
    assert both.authority.fingerprint != old.authority.fingerprint
    assert (both.server_chain, both.server_issuer_fingerprint) == (
        old.server_chain,
        old.authority.fingerprint,
    )
    rig.names.append("fleet.example")
    rig.keyring.maintain()
    # Agents that were away know the old CA only.
    assert rig.keyring.current.server_issuer_fingerprint == old.authority.fingerprint
    with pytest.raises(KeyringError, match="being changed already"):
        rig.keyring.rotate()
    new = rig.keyring.finish()
    assert new.trusted == both.trusted[:1]
    assert new.server_issuer_fingerprint == both.authority.fingerprint
    assert (rig.folder / "ca.key").read_bytes() == both.authority.key_pem
    assert not rig.keyring.maintain()
    assert rig.keyring.finish().server_chain == new.server_chain


@pytest.mark.parametrize("change", ["rotate", "finish"])
def test_a_change_that_is_cut_short_leaves_nothing_broken(
    change: str, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last file that was written: each state can be read, and the change be made again."""
    if change == "finish":
        rig.keyring.rotate()
    write, states = Folder.write, []

    def noted(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)
        states.append(rig.files())

    monkeypatch.setattr(Folder, "write", noted)
    getattr(rig.keyring, change)()
    monkeypatch.undo()
    assert len(states) == {"rotate": 2, "finish": 3}[change]
    for state in states:
        for name, data in state.items():
            (rig.folder / name).write_bytes(data)
        assert rig.another().load().authority is not None
        again = rig.another()
        if change == "rotate" and again.load().is_changing:
            continue
        assert getattr(again, change)().is_changing is (change == "rotate")


def broken(pem: bytes, kind: bytes, dice: random.Random) -> bytes:
    """The file with a few bytes of its first block of that kind replaced."""
    [block, *_] = re.findall(rb"-----BEGIN " + kind + rb"-----(.+?)-----END", pem, re.DOTALL)
    der = bytearray(base64.b64decode(block))
    for _ in range(dice.choice([1, 1, 2])):
        der[dice.randrange(len(der))] = dice.randrange(256)
    return pem.replace(block, b"\n" + base64.encodebytes(bytes(der)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ca.pem", b"CERTIFICATE"),
        ("server.pem", b"CERTIFICATE"),
        ("server.pem", b"PRIVATE KEY"),
        ("ca.key", b"PRIVATE KEY"),
    ],
)
def test_files_with_random_faults_are_no_defects(rig: Rig, name: str, kind: bytes) -> None:
    whole, dice, refused = (rig.folder / name).read_bytes(), random.Random(1), 0
    for _ in range(200):
        (rig.folder / name).write_bytes(broken(whole, kind, dice))
        try:
            rig.keyring.places.read(rig.now)
        except KeyringError:
            refused += 1
    assert refused > 50


def with_an_unknown_kind_of_key(pem: bytes) -> bytes:
    [block] = re.findall(rb"-----BEGIN CERTIFICATE-----(.+?)-----END", pem, re.DOTALL)
    der, known = base64.b64decode(block), bytes.fromhex("06072a8648ce3d0201")
    assert known in der
    return pem.replace(
        block, b"\n" + base64.encodebytes(der.replace(known, bytes.fromhex("06072a8648ce3d0209")))
    )


def test_a_certificate_with_a_kind_of_key_that_nobody_knows(rig: Rig) -> None:
    for name in ("ca.pem", "server.pem"):
        path = rig.folder / name
        whole = path.read_bytes()
        path.write_bytes(with_an_unknown_kind_of_key(whole))
        with pytest.raises(
            KeyringError, match=rf"{name}: holds a certificate that cannot be used: Unknown key"
        ):
            rig.another().load()
        path.write_bytes(whole)


def test_what_nobody_has_foreseen_ends_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    before = rig.keyring.current
    monkeypatch.setattr(rig.keyring.places, "read", fail)
    monkeypatch.setattr(rig, "names", None)
    with capture_logs() as logs:
        for _ in range(3):
            assert not rig.keyring.maintain()
        assert [line["error"] for line in logs] == ["TypeError: 'NoneType' object is not iterable"]
        (rig.folder / "ca.pem").touch()
        for _ in range(3):
            assert not rig.keyring.maintain()
            assert not rig.keyring.refresh()
    # Once for each way, and again for other files.
    assert [line["error"] for line in logs].count("RuntimeError: a defect") == 1
    assert len(logs) == 3
    assert rig.keyring.current is before


def test_the_old_key_goes_even_if_the_change_of_the_ca_was_cut_short(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = rig.another()
    running.load()
    rig.keyring.rotate()
    running.refresh()
    write = Folder.write

    def killed(folder: Folder, name: str, data: bytes) -> None:
        if name == "ca.key":
            raise KeyboardInterrupt
        write(folder, name, data)

    monkeypatch.setattr(Folder, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        rig.keyring.finish()
    monkeypatch.undo()
    assert (rig.folder / "ca.key").read_bytes().count(b"BEGIN PRIVATE") == 2
    running.refresh()
    running.maintain()
    assert running.current.authority is not None
    assert (rig.folder / "ca.key").read_bytes() == running.current.authority.key_pem
    assert not running.current.has_spare_keys
    assert not running.maintain()


def test_the_key_of_a_ca_that_is_yet_to_come_stays(rig: Rig) -> None:
    """As when the files of a collector that has begun a change are copied to another, one after the other."""
    keys = Authority.create(START).key_pem + (rig.folder / "ca.key").read_bytes()
    (rig.folder / "ca.key").write_bytes(keys)
    rig.keyring.maintain()
    rig.keyring.maintain()
    assert (rig.folder / "ca.key").read_bytes() == keys


def test_a_site_brings_its_own(site: Callable[..., Rig]) -> None:
    rig = site()
    assert not rig.keyring.open()
    assert not rig.folder.exists()
    assert rig.keyring.current.authority is not None
    rig.names.append("fleet.example")
    assert not rig.keyring.maintain()  # its certificate is the site's business
    for change in (rig.keyring.rotate, rig.keyring.finish):
        with pytest.raises(KeyringError, match="put its new certificate first"):
            change()


def test_a_site_brings_its_ca_and_the_collector_makes_its_certificate(site: Callable[..., Rig]) -> None:
    rig = site(certificate=False)
    assert not rig.keyring.open()
    assert sorted(rig.files()) == ["lock", "server.pem"]


def test_a_site_keeps_its_key_elsewhere(site: Callable[..., Rig]) -> None:
    rig = site(key=False)
    rig.keyring.open()
    assert rig.keyring.current.authority is None
    assert not rig.keyring.maintain()


def test_an_expired_certificate_of_the_site(site: Callable[..., Rig]) -> None:
    rig = site()
    rig.now += (DAY + 1) * 1000
    with pytest.raises(KeyringError, match=r"certificate\.pem: expired on 20"):
        rig.keyring.open()


def test_a_certificate_of_somebody_whom_agents_do_not_trust(site: Callable[..., Rig]) -> None:
    rig = site()
    key, chain = Authority.create(START).sign_server(NAMES, START, DAY)
    rig.keyring.places.key_path.write_bytes(key)
    rig.keyring.places.certificate_path.write_bytes(chain)
    with pytest.raises(KeyringError, match="which agents do not trust; add that CA's certificate at the end"):
        rig.keyring.open()


@pytest.mark.parametrize("name", ["ca.key", "server.pem"])
def test_a_key_that_is_open_to_others(rig: Rig, name: str) -> None:
    (rig.folder / name).chmod(0o640)
    for read in (rig.another().open, rig.another().load):
        with pytest.raises(KeyringError, match=rf"{name} is open to others \(mode 0640\); run: chmod 600 /"):
            read()


def test_a_directory_that_others_can_change(rig: Rig) -> None:
    rig.folder.chmod(0o777)
    with pytest.raises(KeyringError, match=r"can be changed by others .* run: chmod 700"):
        rig.another().open()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("ca.pem", b"", r"ca\.pem: holds no certificate"),
        ("ca.pem", b"x" * 100_000, r"ca\.pem has more than 64 KiB"),
        ("ca.key", b"nonsense", r"ca\.key: holds no private key"),
        ("ca.key", Authority.create(START).key_pem, r"ca\.key: no key of the first certificate in .*ca\.pem"),
    ],
)
def test_files_that_are_not_what_they_should_be(rig: Rig, name: str, data: bytes, said: str) -> None:
    (rig.folder / name).write_bytes(data)
    for read in (rig.another().open, rig.another().load):
        with pytest.raises(KeyringError, match=said):
            read()


def test_a_server_is_no_ca(rig: Rig) -> None:
    (rig.folder / "ca.pem").write_bytes(rig.keyring.current.server_chain)
    with pytest.raises(KeyringError, match=r"ca\.pem: CN=fleetpulse collector is no CA's"):
        rig.another().load()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match=r"there is no CA in .*; make one: collector-cli ca init"):
        Rig(tmp_path).keyring.load()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyringError, match=r"cannot make the directory .*: Not a directory"):
        Rig(tmp_path / "file").keyring.open()


def test_a_private_key_shows_in_no_repr(rig: Rig) -> None:
    assert b"PRIVATE" not in repr(rig.keyring.current).encode()


def test_names_are_those_of_the_machine_and_more() -> None:
    names = find_names("[2001:DB8:0::7]:1", ("Fleet.Example.", "*.x", "a b"))
    assert names[:2] == ["fleet.example", "*.x"]
    assert {"localhost", "127.0.0.1", "::1", "2001:db8::7"} <= set(names)
    assert "a b" not in names
    assert not {"0.0.0.0", "::"} & set(find_names("0.0.0.0:1", ()) + find_names("[::]:1", ()))
    assert "unix" not in "".join(find_names("unix:/x", ()))


def test_dns_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never = threading.Event()
    monkeypatch.setattr(server_names, "_DNS_PATIENCE", 0.01)
    monkeypatch.setattr("socket.getfqdn", lambda: never.wait(10) and "x")
    assert "localhost" in find_names("127.0.0.1:1", ())
    never.set()


def test_found_addresses_have_no_scope() -> None:
    names = find_names("[fe80::2%eth0]:1", ("fe80::1%eth0", "fe80::1%eth1"))
    assert [name for name in names if name.startswith("fe80")][:2] == ["fe80::1", "fe80::2"]


def test_a_hostname_that_dns_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label has 63 characters at most, a hostname on Linux 64."""
    crashes: list[object] = []
    monkeypatch.setattr("threading.excepthook", crashes.append)
    monkeypatch.setattr("socket.gethostname", lambda: "x" * 64)
    monkeypatch.setattr("socket.getfqdn", lambda: ("x" * 64).encode("idna").decode())
    names = find_names("127.0.0.1:1", ())
    assert "localhost" in names
    assert "x" * 64 not in names
    assert not crashes
