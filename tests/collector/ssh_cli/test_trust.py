"""collector-cli ssh trust, with real SSH servers."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import asyncssh
import pytest

from collector.cli import ssh_trust_hosts
from collector.cli.ssh_offers import Offer, Verdict
from collector.ssh.target import Target
from collector.ssh.trust import Trusted
from collector.store.labels import save_labels
from collector.store.ssh_known_hosts import add_known_hosts
from tests.collector.cli_inside import Cli
from tests.collector.fleet import Fleet
from tests.collector.ssh_cli.records import add, lines, public, stored, version
from tests.ssh_server import SshServer


def test_the_keys_that_hosts_show_are_trusted(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    add(cli, "web-2", servers[1])
    cli("ssh", "add", "web-3", "--address", "127.0.0.1", "--port", "1")
    before = version(fleet.store)
    ran = cli("ssh", "trust", "web-1", "web-2", "web-3")
    assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    assert lines(fleet.store) == []
    ran = cli("ssh", "trust", "web-1", "web-2", "web-3", "--yes")
    assert ran.status == 1
    assert ran.out.startswith("WARNING: 2 of 3 hosts trusted\n")
    assert server.host_key.get_fingerprint() in ran.out
    assert "web-3  127.0.0.1:1" in ran.out
    assert set(lines(fleet.store)) == {
        f"web-1 {public(servers[0].host_key)}",
        f"web-2 {public(servers[1].host_key)}",
    }
    assert version(fleet.store) != before
    again = cli("ssh", "trust", "web-1")  # asks nothing
    assert (again.status, again.out.splitlines()[1].split()[-2:]) == (0, ["FINGERPRINT", "STATE"])
    assert again.out.endswith("  trusted\n")
    assert cli("ssh", "test", "web-1").out.count("host key ssh-ed25519") == 1


def test_another_key_is_refused_until_it_is_to_replace_the_old_one(
    fleet: Fleet, cli: Cli, server: SshServer
) -> None:
    old, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    by_address = f"other,[127.0.0.1]:{server.port} {public(old)}"
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1 {public(old)}", by_address, f"web-9 {public(other)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes")
    assert ran.status == 2
    for key in (old, server.host_key):
        assert key.get_fingerprint() in ran.out
    assert len(lines(fleet.store)) == 3
    answer = cli("ssh", "trust", "web-1", "--yes", "--json").json
    assert (answer["state"], answer["hosts"][0]["trusted"]) == ("CRITICAL", False)
    assert answer["hosts"][0]["known"] == [{"type": "ssh-ed25519", "fingerprint": old.get_fingerprint()}]
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert (ran.status, ran.err) == (0, "")
    # Others who share the line keep it.
    assert set(lines(fleet.store)) == {
        f"web-9 {public(other)}",
        f"other {public(old)}",
        f"web-1 {public(server.host_key)}",
    }


def test_a_key_that_a_pattern_vouches_for_cannot_be_replaced_silently(
    fleet: Fleet, cli: Cli, server: SshServer
) -> None:
    old = asyncssh.generate_private_key("ssh-ed25519")
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-* {public(old)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert f"{old.get_fingerprint()} is still trusted" in ran.err
    assert len(lines(fleet.store)) == 2


def test_a_revoked_key_is_never_trusted(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"@revoked * {public(server.host_key)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert ran.status == 2
    assert "shows a revoked key" in ran.out
    assert len(lines(fleet.store)) == 1


def test_a_fingerprint_decides(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    ran = cli("ssh", "trust", "web-1", "--fingerprint", f"SHA256:{'x' * 43}")
    assert (ran.status, ran.out) == (3, "")
    assert f"but ssh-ed25519 {server.host_key.get_fingerprint()}" in ran.err
    assert lines(fleet.store) == []
    assert cli("ssh", "trust", "web-1", "--fingerprint", server.host_key.get_fingerprint()).status == 0
    assert lines(fleet.store) == [f"web-1 {public(server.host_key)}"]
    assert cli("ssh", "trust", "web-1", "web-1x", "--fingerprint", "SHA256:x").status == 3


def test_a_jump_host_is_trusted_by_its_own_name(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    assert add(cli, "inner", servers[1], "--jump", f"127.0.0.1:{server.port}").status == 0
    ran = cli("ssh", "trust", "inner", "--yes")
    assert ran.status == 1
    assert "collector-cli ssh trust 127.0.0.1" in ran.out
    assert cli("ssh", "trust", "127.0.0.1", "--yes").status == 0
    # Another machine may answer at another port.
    assert lines(fleet.store) == [f"[127.0.0.1]:{server.port} {public(server.host_key)}"]
    assert cli("ssh", "trust", "inner", "--yes").status == 0
    assert f"inner {public(servers[1].host_key)}" in lines(fleet.store)
    ran = cli("ssh", "trust", "nobody", "--yes")
    assert ran.status == 3
    assert "no host nobody, and no jump host" in ran.err


def test_jump_hosts_at_one_address_are_told_apart_by_their_ports(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    one, two = servers
    add(cli, "a", one, "--jump", f"root@127.0.0.1:{one.port}")
    add(cli, "b", two, "--jump", f"127.0.0.1:{two.port}")
    assert cli("ssh", "trust", f"admin@127.0.0.1:{two.port}", "--yes").status == 0
    assert lines(fleet.store) == [f"[127.0.0.1]:{two.port} {public(two.host_key)}"]
    assert cli("ssh", "trust", "127.0.0.1", "--yes").status == 0
    assert set(lines(fleet.store)) == {
        f"[127.0.0.1]:{server.port} {public(server.host_key)}" for server in servers
    }
    assert "no host 127.0.0.1:1," in cli("ssh", "trust", "127.0.0.1:1", "--yes").err


def test_a_key_of_an_address_that_others_have_is_not_replaced(
    fleet: Fleet, cli: Cli, server: SshServer
) -> None:
    old = asyncssh.generate_private_key("ssh-ed25519")
    add(cli, "other", server)
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1 {public(old)}", f"[127.0.0.1]:{server.port} {public(old)}"], 1)
    ran = cli("ssh", "trust", "web-1", "--yes", "--replace")
    assert f"{old.get_fingerprint()} is still trusted" in ran.err
    assert set(lines(fleet.store)) == {
        f"[127.0.0.1]:{server.port} {public(old)}",
        f"web-1 {public(server.host_key)}",
    }


def test_a_key_of_another_type_replaces_nothing(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    other = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1 {public(other)}"], 1)
    assert cli("ssh", "trust", "web-1", "--yes").status == 2
    ran = cli("ssh", "trust", "web-1", "--fingerprint", server.host_key.get_fingerprint())
    assert (ran.status, ran.err) == (0, "")
    assert len(lines(fleet.store)) == 2
    assert ran.out.splitlines()[2].endswith("trusted from now on")
    assert cli("ssh", "trust", "web-1").out.endswith("  trusted\n")


def test_each_key_says_how_it_stands() -> None:
    one, two, old = (
        asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-ed25519")
    )
    with_key = Offer(
        Target(1, "", "a", "b", 22, "c", (), None, (), 1.0, 1.0, {}), (one, two), Trusted((one,), own=(one,))
    )
    rows = ssh_trust_hosts._rows(with_key)
    assert [row[0].text for row in rows] == ["a", ""]
    assert [row[-1].text for row in rows] == ["trusted", "not trusted"]
    assert (with_key.verdict, with_key.fresh) == (Verdict.TRUSTED, [two])
    changed = with_key._replace(trusted=Trusted((two, old), own=(two, old)))
    assert [row[-1].text for row in ssh_trust_hosts._rows(changed)] == [
        "another key is trusted; if this one is right: --replace",
        "trusted",
        "the trusted one",
    ]


def test_a_host_may_be_trusted_by_its_ca(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    ca, key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"@cert-authority * {public(ca)}"], 1)
    server = SshServer(tmp_path, b"")
    with SshServer(tmp_path, b"") as other:
        add(cli, "web-2", other)
        # A CA that may vouch for it is not yet one that does.
        ran = cli("ssh", "trust", "web-2")
        assert (ran.status, ran.err) == (3, "collector-cli: nobody at a terminal to be asked; add --yes\n")
    server.host_key = (key, ca.generate_host_certificate(key, "web-1", principals=["web-1"]))  # type: ignore[assignment] - asyncssh takes a pair
    with server:
        add(cli, "web-1", server)
        ran = cli("ssh", "trust", "web-1")
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.endswith("  trusted by CA\n")
        assert len(lines(fleet.store)) == 1
        # Somebody who has its fingerprint trusts the key itself.
        assert cli("ssh", "trust", "web-1", "--fingerprint", key.get_fingerprint()).status == 0
    assert lines(fleet.store)[1:] == [f"web-1 {public(key)}"]


def test_many_are_trusted_without_naming_them(
    fleet: Fleet, cli: Cli, server: SshServer, servers: tuple[SshServer, SshServer]
) -> None:
    add(cli, "web-2", servers[1], "--group", "g")
    fleet.add("agent-1")
    assert cli("ssh", "trust", "--group", "g", "--yes").status == 0
    assert lines(fleet.store) == [f"web-2 {public(servers[1].host_key)}"]
    host = stored(fleet.store)["web-2"].host
    with fleet.store.transaction() as tx:
        save_labels(tx, [(host, "site", "x")])
    answer = cli("ssh", "trust", "--untrusted", "--label", "site", "--yes", "--json").json
    assert answer["hosts"] == []
    answer = cli("ssh", "trust", "--label", "site=x", "--yes", "--json").json
    assert [host["name"] for host in answer["hosts"]] == ["web-2"]
    assert cli("ssh", "trust", "--label", "site=y").err.endswith("no host has label site=y\n")
    answer = cli("ssh", "trust", "--untrusted", "--yes", "--json").json
    assert [host["name"] for host in answer["hosts"]] == ["web-1"]
    assert cli("ssh", "trust", "--untrusted").out.startswith("OK: 0 of 0 hosts trusted\n")
    assert cli("ssh", "trust", "--group", "nobody").status == 3


def test_a_private_key_is_no_authority(fleet: Fleet, cli: Cli, server: SshServer) -> None:
    ran = cli("ssh", "trust", "--ca", str(server.key_file))
    assert (ran.status, ran.err) == (
        3,
        f"collector-cli: {server.key_file} is a private key; give {server.key_file}.pub\n",
    )
    assert "a pattern has no blanks" in cli("ssh", "trust", "--ca", str(server.key_file), "--for", "").err


def test_a_name_that_means_others_as_well_is_refused(fleet: Fleet, cli: Cli) -> None:
    fleet.add("*")
    ran = cli("ssh", "trust", "*", "--yes")
    assert ran.status == 3
    assert "collector-cli rename" in ran.err


def test_lines_of_files_and_authorities(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    key, ca = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    path = tmp_path / "known_hosts"
    path.write_text(
        f"# a comment\n\nweb-1,192.0.2.7   {public(key)}  somebody@somewhere\nweb-2 ssh-ed25519 AAAA\nx\n"
    )
    ran = cli("ssh", "trust", "--known-hosts", str(path))
    assert (ran.status, ran.out) == (0, "1 key trusted from now on, 0 trusted already\n")
    assert "2 lines left out: line 4 its key is not of the type ssh-ed25519, line 5 is no line" in ran.err
    assert (
        cli("ssh", "trust", "--known-hosts", str(path)).out
        == "0 keys trusted from now on, 1 trusted already\n"
    )
    (tmp_path / "ca.pub").write_text(f"{public(ca)} the CA\n")
    assert cli("ssh", "trust", "--ca", str(tmp_path / "ca.pub"), "--for", "*.lab").status == 0
    assert lines(fleet.store) == [f"web-1,192.0.2.7 {public(key)}", f"@cert-authority *.lab {public(ca)}"]
    assert cli("ssh", "trust", "--list", "--json").json["keys"] == [
        {
            "names": "web-1,192.0.2.7",
            "kind": "host",
            "type": "ssh-ed25519",
            "fingerprint": key.get_fingerprint(),
        },
        {"names": "*.lab", "kind": "ca", "type": "ssh-ed25519", "fingerprint": ca.get_fingerprint()},
    ]
    assert key.get_fingerprint() in cli("ssh", "trust", "--list").out
    before = version(fleet.store)
    ran = cli("ssh", "trust", "--forget", "web-1", "--forget", "*.lab")
    assert (ran.status, ran.out.count("forgot ssh-ed25519 SHA256:")) == (0, 2)
    assert lines(fleet.store) == [f"192.0.2.7 {public(key)}"]
    assert version(fleet.store) != before
    assert "no key of web-1 is trusted" in cli("ssh", "trust", "--forget", "web-1").err
    assert cli("ssh", "trust", "--ca", str(path)).status == 3
    assert cli("ssh", "trust", "--known-hosts", str(tmp_path / "none")).status == 3


def test_the_keys_in_a_file_replace_those_of_the_same_names(fleet: Fleet, cli: Cli, tmp_path: Path) -> None:
    old, new, ca = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
    kept = [f"@cert-authority web-1 {public(ca)}", f"web-* {public(old)}", f"web-2 {public(old)}"]
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"web-1,192.0.2.7 {public(old)}", *kept], 1)
    path = tmp_path / "known_hosts"
    path.write_text(f"web-1 {public(new)}\n")
    trust = ("ssh", "trust", "--known-hosts", str(path), "--replace")
    assert cli(*trust).out == "1 key trusted from now on, 0 trusted already, 1 forgotten\n"
    expected = [*kept, f"192.0.2.7 {public(old)}", f"web-1 {public(new)}"]
    assert sorted(lines(fleet.store)) == sorted(expected)
    before = version(fleet.store)
    assert cli(*trust, "--json").json == {"added": 0, "known": 1, "forgotten": 0}
    assert version(fleet.store) == before


def test_a_hashed_line_is_forgotten_by_its_name(fleet: Fleet, cli: Cli) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    salt = b"s" * 20
    digest = hmac.new(salt, b"web-1", hashlib.sha1).digest()
    hashed = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    with fleet.store.transaction() as tx:
        add_known_hosts(tx, [f"{hashed} {public(key)}"], 1)
    assert cli("ssh", "trust", "--forget", "web-2").status == 3
    assert cli("ssh", "trust", "--forget", "web-1").status == 0
    assert lines(fleet.store) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("web-1", "--list"),
        ("web-1", "--untrusted"),
        ("web-1", "--label", "x"),
        ("--list", "--label", "x"),
        ("",),
        ("--list", "--forget", "x"),
        ("--list", "--replace"),
        ("--list", "--for", "x"),
        ("--known-hosts", "x", "--ca", "y"),
    ],
)
def test_ways_to_trust_that_do_not_go_together(fleet: Fleet, cli: Cli, arguments: tuple[str, ...]) -> None:
    ran = cli("ssh", "trust", *arguments)
    assert ran.status == 3
    assert "Usage: " in ran.err
