"""Connections that hang, lie or are refused, at every stage, with a server that does just that."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest

from collector.config import Ssh
from collector.core.diagnosis import DiagnosisKind
from collector.ssh.connection import Dialer
from collector.ssh.failure import ProbeFailure
from collector.ssh.links import Links
from collector.ssh.session import Answer
from collector.ssh.target import Hop, Resolver, Target
from collector.ssh.trust import TrustedKeys
from tests.processes import wait_until
from tests.ssh_server import SshServer

OUTPUT = b"fleetpulse-probe 1\n== uname\nLinux\n== end\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with SshServer(tmp_path, OUTPUT) as running:
        yield running


def make_links(*lines: str) -> Links:
    return Links(Dialer(Resolver(Ssh()), TrustedKeys(lines)), 10)


async def ask(links: Links, *targets: Target) -> list[Answer]:
    try:
        return [await links.ask(target) for target in targets]
    finally:
        links.drop_all()
        links.dialer.close()


def refused(links: Links, target: Target) -> ProbeFailure:
    with pytest.raises(ProbeFailure) as raised:
        asyncio.run(ask(links, target))
    return raised.value


def test_a_host_is_asked_and_its_connection_kept(server: SshServer) -> None:
    answers = asyncio.run(ask(make_links(server.known_hosts_line), *[server.target()] * 5))
    assert [answer.output for answer in answers] == [OUTPUT] * 5
    assert (server.connections, len(server.commands), server.sessions.total()) == (1, 1, 5)
    assert server.users == ["monitor"]


def test_a_home_directory_that_cannot_be_looked_into_does_not_matter(
    server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may have one that is closed to it; who runs tests as root has none, but for this."""
    monkeypatch.setenv("HOME", "/" + "x" * 300)
    [answer] = asyncio.run(ask(make_links(server.known_hosts_line), server.target()))
    assert answer.output == OUTPUT


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("silent", DiagnosisKind.FROZEN, "SSH says nothing"),
        ("banner", DiagnosisKind.FROZEN, "begins to speak SSH and stops"),
        ("auth", DiagnosisKind.FROZEN, "begins to speak SSH and stops"),
        ("garbage", DiagnosisKind.FROZEN, "SSH says nothing"),
        ("refuse", DiagnosisKind.KEY_REFUSED, "Permission denied"),
        ("stall", DiagnosisKind.PROBE_FAILED, "did not end within"),
    ],
)
def test_a_host_that_hangs_anywhere_holds_its_place_until_the_deadline_only(
    tmp_path: Path, mode: str, kind: DiagnosisKind, said: str
) -> None:
    with SshServer(tmp_path, OUTPUT, mode) as server:
        began = time.monotonic()
        failure = refused(make_links(server.known_hosts_line), server.target(timeout=1.5))
        assert time.monotonic() - began < 5
    assert failure.diagnosis.kind is kind
    assert said in failure.diagnosis.evidence
    assert str(server.port) in failure.diagnosis.evidence


def test_a_probe_that_ends_after_its_answer_is_started_again(server: SshServer) -> None:
    """An older one, to which the key is bound."""
    server.mode = "once"
    answers = asyncio.run(ask(make_links(server.known_hosts_line), *[server.target()] * 3))
    assert [answer.output for answer in answers] == [OUTPUT] * 3
    assert server.connections == 1
    assert len(server.commands) == 3


def test_a_host_that_floods_is_cut_off_before_it_has_said_who_it_is(tmp_path: Path) -> None:
    with SshServer(tmp_path, OUTPUT, "flood") as server:
        failure = refused(make_links(server.known_hosts_line), server.target(timeout=6))
        assert failure.diagnosis.kind is DiagnosisKind.SSH_CLOSED
        assert "sends more than a login takes" in failure.diagnosis.evidence
        assert server.sent < 20_000_000


def test_what_a_host_says_is_one_line_without_control_characters_and_not_long() -> None:
    """It goes into the database, to terminals and into logs."""
    failure = ProbeFailure(DiagnosisKind.SSH_CLOSED, "\x1b[2J\n" + "é\x00" * 100_000)
    assert failure.diagnosis.evidence.isprintable()
    assert len(failure.diagnosis.evidence) <= 2_000


def test_trust_that_is_withdrawn_while_a_connection_is_in_use_ends_it(server: SshServer) -> None:
    async def withdraw(links: Links) -> None:
        await links.ask(server.target())
        polling = asyncio.create_task(links.ask(server.target()))
        await asyncio.sleep(0)
        links.dialer.trusted = TrustedKeys()
        links.drop_all()
        await polling
        assert len(links) == 0
        await links.ask(server.target())

    with pytest.raises(ProbeFailure, match="is to be trusted"):
        asyncio.run(withdraw(make_links(server.known_hosts_line)))


def test_trust_in_a_jump_host_that_is_withdrawn_ends_its_connection(
    server: SshServer, tmp_path: Path
) -> None:
    folder = tmp_path / "jump"
    folder.mkdir()

    async def withdraw(links: Links, target: Target) -> None:
        await links.ask(target)
        links.dialer.trusted = TrustedKeys([server.known_hosts_line])
        links.drop_all()
        await links.ask(target)

    with SshServer(folder, b"") as gate:
        gate.client_key = server.client_key
        trusted = f"127.0.0.1 {gate.host_key.export_public_key().decode()}"
        target = server.target(jump=(Hop("", "127.0.0.1", gate.port),))
        with pytest.raises(ProbeFailure, match="is to be trusted"):
            asyncio.run(withdraw(make_links(server.known_hosts_line, trusted), target))


def test_what_one_host_needs_is_not_asked_of_its_jump_host(server: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / "jump"
    folder.mkdir()
    with SshServer(folder, b"") as gate:
        gate.client_key = server.client_key
        trusted = f"127.0.0.1 {gate.host_key.export_public_key().decode()}"
        hop = Hop("", "127.0.0.1", gate.port)
        old = server.target(jump=(hop,), host=2, options={"HostKeyAlgorithms": "ssh-rsa"})

        async def both(links: Links) -> list[Answer]:
            with pytest.raises(ProbeFailure):
                await links.ask(old)
            return await ask(links, server.target(jump=(hop,)))

        assert asyncio.run(both(make_links(server.known_hosts_line, trusted)))
        assert gate.connections == 1


def test_output_without_end_is_cut_at_the_limit(server: SshServer) -> None:
    server.mode = "huge"
    links = make_links(server.known_hosts_line)

    async def ask_twice() -> list[Answer]:
        first = await links.ask(server.target())
        assert len(links) == 0, "it goes on printing"
        return [first, *await ask(links, server.target())]

    for answer in asyncio.run(ask_twice()):
        assert answer.is_cut
        assert len(answer.output) == 256 << 10


def test_a_kept_connection_that_was_cut_is_made_anew_unnoticed(server: SshServer) -> None:
    async def cut_in_between(links: Links) -> list[Answer]:
        first = await links.ask(server.target())
        server.disconnect()
        return [first, *await ask(links, server.target())]

    assert len(asyncio.run(cut_in_between(make_links(server.known_hosts_line)))) == 2
    assert server.connections == 2


def test_a_kept_connection_that_answers_no_more_costs_a_part_of_the_time(server: SshServer) -> None:
    """Half-open: the machine has lost its memory, and nothing comes back."""

    async def freeze(links: Links) -> ProbeFailure | list[Answer]:
        await links.ask(server.target(timeout=1.5))
        stopped, go_on = threading.Event(), threading.Event()
        server._loop.call_soon_threadsafe(lambda: (stopped.set(), go_on.wait(20)))
        stopped.wait(5)
        try:
            return await ask(links, server.target(timeout=1.5))
        except ProbeFailure as failure:
            return failure
        finally:
            go_on.set()

    failure = asyncio.run(freeze(make_links(server.known_hosts_line)))
    assert isinstance(failure, ProbeFailure)
    assert failure.diagnosis.kind is DiagnosisKind.FROZEN


def test_an_unknown_key_is_not_accepted_and_the_key_shown(server: SshServer) -> None:
    failure = refused(make_links(), server.target())
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert server.host_key.get_fingerprint() in failure.diagnosis.evidence
    assert "collector-cli ssh trust web-1" in failure.diagnosis.evidence
    assert server.users == []  # nothing was shown to it


def test_another_key_than_the_known_one_is_told_with_both(server: SshServer) -> None:
    known = asyncssh.generate_private_key("ssh-ed25519")
    failure = refused(make_links(f"web-1 {known.export_public_key().decode()}"), server.target())
    assert failure.diagnosis.kind is DiagnosisKind.HOST_KEY_CHANGED
    for key in (known, server.host_key):
        assert key.get_fingerprint() in failure.diagnosis.evidence


def test_a_host_that_offers_no_key_of_the_known_type_has_changed(server: SshServer) -> None:
    known = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    failure = refused(make_links(f"web-1 {known.export_public_key().decode()}"), server.target())
    assert failure.diagnosis.kind is DiagnosisKind.HOST_KEY_CHANGED


def test_a_revoked_key_is_not_accepted(server: SshServer) -> None:
    line = server.known_hosts_line
    failure = refused(make_links(line, f"@revoked {line}"), server.target())
    assert failure.diagnosis.kind is DiagnosisKind.HOST_KEY_CHANGED
    assert "revoked" in failure.diagnosis.evidence


def test_a_key_may_be_known_by_the_address_too(server: SshServer) -> None:
    key = server.host_key.export_public_key().decode()
    for name in ("127.0.0.1", f"[127.0.0.1]:{server.port}"):
        assert asyncio.run(ask(make_links(f"{name} {key}"), server.target()))


def test_nobody_listens(server: SshServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = server.target(port=taken.getsockname()[1])
        failure = refused(make_links(), target)
    assert failure.diagnosis.kind is DiagnosisKind.SSH_CLOSED
    assert "refused" in failure.diagnosis.evidence


def test_a_name_that_means_nothing(server: SshServer) -> None:
    failure = refused(make_links(), server.target(address="no-such-host.invalid"))
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert "cannot be resolved" in failure.diagnosis.evidence


def test_an_address_does_not_wait_for_name_servers(server: SshServer) -> None:
    """Names that nobody answers for take up every thread for lookups, and not the end of the program."""

    async def clog(links: Links) -> list[Answer]:
        release = threading.Event()
        for _ in range(20):
            links.dialer._lookups._jobs.put(lambda: release.wait(30))
        try:
            for number in range(10):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await links.dialer._lookups.look_up(f"name-{number}.invalid", 22)
            assert all(thread.daemon for thread in threading.enumerate() if thread.name == "lookup")
            return await ask(links, server.target(timeout=1.5))
        finally:
            release.set()

    assert asyncio.run(clog(make_links(server.known_hosts_line)))


@pytest.mark.parametrize("address", ["web..1", "x" * 300, "127.0.0.1\x00.example", "\ud800"])
def test_what_is_no_name_is_asked_nowhere(server: SshServer, address: str) -> None:
    failure = refused(make_links(server.known_hosts_line), server.target(address=address))
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert server.connections == 0


def test_a_key_file_that_others_may_read_is_not_used(server: SshServer) -> None:
    server.key_file.chmod(0o640)
    failure = refused(make_links(server.known_hosts_line), server.target())
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert f"chmod 600 {server.key_file}" in failure.diagnosis.evidence
    assert server.connections == 0


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "cannot read"),
        ("rubbish", "is no private key"),
        ("passphrase", "ssh-agent"),
        ("public", "client"),
    ],
)
def test_a_key_file_that_cannot_be_used(server: SshServer, what: str, said: str) -> None:
    if what == "missing":
        server.key_file.unlink()
    elif what == "rubbish":
        server.key_file.write_text("rubbish")
    else:
        server.client_key.write_private_key(server.key_file, passphrase="secret")
    target = server.target()
    if what == "public":
        target = server.target(keys=(server.key_file.with_suffix(".pub"),))
        target.keys[0].write_bytes(server.client_key.export_public_key())
    failure = refused(make_links(server.known_hosts_line), target)
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert str(server.key_file.with_suffix("")) in failure.diagnosis.evidence
    assert said in failure.diagnosis.evidence


@contextmanager
def ssh_agent(socket_path: Path, *keys: Path) -> Iterator[None]:
    """An agent with these keys, while the block runs."""

    def ssh_add(*arguments: str | Path) -> int:
        return subprocess.run(
            ["ssh-add", *arguments], env={"SSH_AUTH_SOCK": str(socket_path)}, capture_output=True, check=False
        ).returncode

    with subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL) as agent:
        try:
            # Its socket is there before it listens. 1: it answers, and has no keys.
            wait_until(lambda: ssh_add("-l") == 1, what="the agent")
            for key in keys:
                assert ssh_add("-q", key) == 0
            yield
        finally:
            agent.terminate()


def test_the_key_may_be_in_an_agent(server: SshServer, tmp_path: Path) -> None:
    """Where one with a passphrase has to be."""
    socket_path = tmp_path / "agent"
    target = server.target(keys=(), agent=socket_path)
    with ssh_agent(socket_path, server.key_file):
        server.key_file.unlink()
        assert asyncio.run(ask(make_links(server.known_hosts_line), target))
    failure = refused(make_links(server.known_hosts_line), target)
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert "is ssh-agent running?" in failure.diagnosis.evidence


def test_no_key_is_taken_from_the_home_of_the_collectors_user(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True)
    server.client_key.write_private_key(home / "id_ed25519")
    monkeypatch.setenv("HOME", str(home.parent))
    socket_path = tmp_path / "agent"
    other = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    other.chmod(0o600)
    with ssh_agent(socket_path, other):
        failure = refused(make_links(server.known_hosts_line), server.target(keys=(), agent=socket_path))
    assert failure.diagnosis.kind is DiagnosisKind.KEY_REFUSED


def test_an_agent_without_keys_is_told_as_that(server: SshServer, tmp_path: Path) -> None:
    socket_path = tmp_path / "agent"
    with ssh_agent(socket_path):
        failure = refused(make_links(server.known_hosts_line), server.target(keys=(), agent=socket_path))
        assert "holds no key" in failure.diagnosis.evidence
        # Where there is a key file as well, nothing is missed.
        assert asyncio.run(ask(make_links(server.known_hosts_line), server.target(agent=socket_path)))


def test_without_anything_to_log_in_with_nothing_is_connected(server: SshServer) -> None:
    failure = refused(make_links(), server.target(keys=()))
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert "ssh.keys" in failure.diagnosis.evidence
    assert server.connections == 0


def test_through_a_jump_host(server: SshServer, tmp_path: Path) -> None:
    """One connection to it serves all hosts behind it; its key is verified like any other."""
    folder = tmp_path / "jump"
    folder.mkdir()
    with SshServer(folder, b"") as gate:
        gate.client_key = server.client_key
        hop = Hop("", "127.0.0.1", gate.port)
        targets = [server.target(jump=(hop,), host=number) for number in range(1, 4)]
        trusted = f"127.0.0.1 {gate.host_key.export_public_key().decode()}"
        answers = asyncio.run(ask(make_links(server.known_hosts_line, trusted), *targets))
        assert [answer.output for answer in answers] == [OUTPUT] * 3
        assert (gate.connections, server.connections) == (1, 3)

        failure = refused(make_links(server.known_hosts_line), targets[0])
        assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
        assert "jump host 127.0.0.1" in failure.diagnosis.evidence
        assert gate.host_key.get_fingerprint() in failure.diagnosis.evidence


def test_a_jump_host_that_is_away_is_the_network(server: SshServer) -> None:
    target = server.target(jump=(Hop("", "127.0.0.1", 1),))
    failure = refused(make_links(server.known_hosts_line), target)
    assert failure.diagnosis.kind is DiagnosisKind.NOT_PROBED
    assert "jump host 127.0.0.1: host up, ssh closed" in failure.diagnosis.evidence


def test_a_host_behind_a_jump_host_that_nobody_listens_on(server: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / "jump"
    folder.mkdir()
    with SshServer(folder, b"") as gate:
        gate.client_key = server.client_key
        trusted = f"127.0.0.1 {gate.host_key.export_public_key().decode()}"
        target = server.target(jump=(Hop("", "127.0.0.1", gate.port),), port=1)
        failure = refused(make_links(server.known_hosts_line, trusted), target)
    assert failure.diagnosis.kind is DiagnosisKind.SSH_CLOSED


def test_every_key_that_a_host_offers_is_fetched_unverified(server: SshServer) -> None:
    async def fetch() -> list[str]:
        dialer = Dialer(Resolver(Ssh()), TrustedKeys())
        try:
            return [key.get_fingerprint() for key in await dialer.fetch_keys(server.target())]
        finally:
            dialer.close()

    assert asyncio.run(fetch()) == [server.host_key.get_fingerprint()]
