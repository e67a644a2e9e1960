"""What holds for a host when its own settings, its groups', a file's and the site's are put together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collector.config import Ssh
from collector.core.ssh_settings import SshSettings
from collector.ssh.target import Hop, Resolver, parse_jump
from collector.ssh.trust import TrustedKeys
from collector.store.ssh_hosts import SshHost
from fleetpulse.config import ConfigError, Duration
from tests.processes import wait_until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


def host(name: str = "web-1", groups: tuple[str, ...] = (), address: str = "", **own: object) -> SshHost:
    settings = SshSettings(**own)  # type: ignore[arg-type]
    return SshHost(1, "id", name, address, 0, 0, True, settings, groups)


def test_own_settings_win_over_groups_over_the_file_over_the_site(tmp_path: Path) -> None:
    file = tmp_path / "ssh_config"
    file.write_text(
        "Host web-*\n  User of-file\n  Port 2201\n  HostName %h.lab\n  ProxyJump gate\n  ConnectTimeout 60\n"
        "  Ciphers aes128-ctr\n  IdentityFile ~/key\nHost *\n  User everybody\n"
    )
    resolver = Resolver(Ssh(config_file=file, user="of-site", port=22, interval=Duration(30)))
    groups = {
        "b": SshSettings(port=2200, concurrency=3),
        "a": SshSettings(interval=5_000),
        "c": SshSettings(user="c"),
    }
    target = resolver.target(host(groups=("a", "b"), user="own"), groups)
    assert (target.user, target.port, target.address) == ("own", 2200, "web-1.lab")
    assert target.interval == 5
    assert target.timeout == 15, "a poll has to end before its lease"
    assert target.jump == (Hop("", "gate", 0),)
    assert target.options == {"Ciphers": "aes128-ctr"}
    assert target.keys == (Path("~/key").expanduser(),)
    assert target.limited_groups == (("b", 3),)
    assert resolver.target(host("db-1", address="192.0.2.9"), {}).user == "everybody"
    assert resolver.target(host("db-1", address="192.0.2.9"), {}).address == "192.0.2.9"


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "ssh_config"
    file.write_text("Host *\n  User one\n")
    resolver = Resolver(Ssh(config_file=file))
    assert resolver.target(host(), {}).user == "one"
    file.write_text("Host *\n  User two\n")
    os.utime(file, ns=(1, 1))
    assert resolver.target(host(), {}).user == "two"


def test_a_file_that_cannot_be_used_is_told_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "ssh_config"
    resolver = Resolver(Ssh(config_file=file))
    with pytest.raises(ConfigError, match="cannot read"):
        resolver.target(host(), {})
    file.write_text("Host *\n  Port many\n")
    with pytest.raises(ConfigError, match=str(file)):
        resolver.target(host(), {})


def test_many_names_are_looked_for_in_the_background(tmp_path: Path) -> None:
    """The whole of a large file is gone through for each."""
    file = tmp_path / "ssh_config"
    file.write_text("".join(f"Host web-{number}\n  User user-{number}\n" for number in range(200)))
    resolver = Resolver(Ssh(config_file=file))
    names = [f"web-{number}" for number in range(100)]
    assert not resolver.is_ready(names)
    wait_until(lambda: resolver.is_ready(names), what="their settings")
    assert resolver.target(host("web-77"), {}).user == "user-77"
    assert Resolver(Ssh()).is_ready(names)
    file.unlink()
    assert resolver.is_ready(names), "the error is told by whoever asks for settings"


def test_a_host_may_do_without_the_jump_host_of_its_group() -> None:
    groups = {"g": SshSettings(jump="gate")}
    assert Resolver(Ssh()).target(host(groups=("g",)), groups).jump
    assert not Resolver(Ssh()).target(host(groups=("g",), jump="none"), groups).jump


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("gate", [Hop("", "gate", 0)]),
        ("root@gate:2222", [Hop("root", "gate", 2222)]),
        ("a, b@c", [Hop("", "a", 0), Hop("b", "c", 0)]),
        ("[2001:db8::1]:22", [Hop("", "2001:db8::1", 22)]),
        ("[2001:db8::1]", [Hop("", "2001:db8::1", 0)]),
        ("", []),
    ],
)
def test_jump_hosts_are_written_as_for_ssh(text: str, hops: list[Hop]) -> None:
    assert parse_jump(text) == tuple(hops)


def test_a_polled_host_has_three_intervals_and_a_timeout() -> None:
    assert Resolver(Ssh()).target(host(interval=10_000, timeout=5_000), {}).ttl == 35


def trusted(*lines: str, names: tuple[str, ...] = ("web-1", "192.0.2.7"), port: int = 22) -> int:
    return len(TrustedKeys(lines).of(names, port).keys)


def test_keys_are_known_by_name_address_and_port() -> None:
    assert trusted(f"web-1 {KEY}") == 1
    assert trusted(f"192.0.2.7 {KEY}") == 1
    assert trusted(f"web-1,192.0.2.7 {KEY}") == 1
    assert trusted(f"web-* {KEY}") == 1
    assert trusted(f"web-2 {KEY}") == 0
    assert trusted(f"[192.0.2.7]:2222 {KEY}", port=2222) == 1
    assert trusted(f"[192.0.2.7]:2222 {KEY}") == 0
    assert trusted(f"web-1 {KEY}", port=2222) == 1


def test_a_key_of_another_port_of_the_address_contradicts_nothing() -> None:
    """Behind a forwarded port another machine answers. The name of a record stands for the record."""

    def own(line: str, port: int) -> int:
        return len(TrustedKeys([line]).of(("web-1", "192.0.2.7"), port).own)

    assert own(f"192.0.2.7 {KEY}", 22) == 1
    assert own(f"192.0.2.7 {KEY}", 2222) == 0
    assert own(f"[192.0.2.7]:2222 {KEY}", 2222) == 1
    assert own(f"web-1 {KEY}", 2222) == 1


def test_authorities_and_revoked_keys_are_no_keys() -> None:
    found = TrustedKeys([f"@cert-authority *.lab {KEY}", f"@revoked * {KEY}"]).of(("web-1.lab",), 22)
    assert (len(found.keys), len(found.authorities), len(found.revoked)) == (0, 1, 1)
    assert not found.is_empty


def test_a_line_that_makes_no_sense_takes_no_other_with_it() -> None:
    assert (
        trusted("# a comment", "", "nonsense", "web-1 ssh-ed25519 AAAA", "@strange web-1 x y", f"web-1 {KEY}")
        == 1
    )


def test_a_host_is_looked_for_once_among_thousands_of_lines() -> None:
    keys = TrustedKeys([f"web-{number}.* {KEY}" for number in range(1_000)])
    assert keys.is_large
    assert keys.of(("web-1.lab",), 22) is keys.of(("web-1.lab",), 22)
    assert not TrustedKeys([f"web-1 {KEY}"]).is_large


def test_a_known_hosts_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ssh\.known_hosts: cannot read"):
        TrustedKeys(files=[tmp_path / "missing"])
