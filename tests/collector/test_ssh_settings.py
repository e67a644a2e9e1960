"""What is said of how a host is reached: put together, checked, and stored."""

from __future__ import annotations

import pytest

from collector.core.ssh_settings import SettingsError, SshSettings, check, decode, encode, merge, parse_option


def test_the_more_particular_wins_and_options_add_up() -> None:
    merged = merge(
        [
            SshSettings(port=2222, options={"Ciphers": "a"}),
            SshSettings(user="monitor", port=22, fallback=False, options={"Ciphers": "b", "MACs": "c"}),
            SshSettings(user="root", interval=30_000, fallback=True),
        ]
    )
    assert merged == SshSettings(
        port=2222, user="monitor", interval=30_000, fallback=False, options={"Ciphers": "a", "MACs": "c"}
    )


@pytest.mark.parametrize(
    ("own", "of_group", "holds"), [(False, True, False), (True, False, True), (None, False, False)]
)
def test_a_no_is_as_good_as_a_yes(own: bool | None, of_group: bool, holds: bool) -> None:
    assert merge([SshSettings(fallback=own), SshSettings(fallback=of_group)]).fallback is holds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SshSettings(port=70_000), "port"),
        (SshSettings(address="two words"), "address"),
        (SshSettings(user="-oProxyCommand=x"), "dash"),
        (SshSettings(key="a\nb"), "key"),
        (SshSettings(interval=10), "at least 1 s"),
        (SshSettings(timeout=10), "at least 0.5 s"),
        (SshSettings(timeout=60_000), "at most 15 s"),
        (SshSettings(jump="gate:ssh"), "jump"),
        (SshSettings(jump="a,,b"), "jump"),
        (SshSettings(options={"LocalCommand": "x"}), "LocalCommand"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings: SshSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check(settings)


def test_good_ones_pass_and_are_stored_exactly() -> None:
    settings = SshSettings(
        "192.0.2.7",
        22,
        "monitor",
        "/etc/key with blanks",
        "root@gate:22,[2001:db8::1]:22",
        1_000,
        500,
        3,
        False,
        {"MACs": "x"},
    )
    check(settings)
    assert decode(encode(settings)) == settings
    assert encode(SshSettings()) == "{}"


@pytest.mark.parametrize("text", ["", "[]", '{"port": "22"}', '{"colour": 1}', '{"port": 70000}', b"\xff"])
def test_what_somebody_else_has_stored_is_an_error_and_no_crash(text: str | bytes) -> None:
    with pytest.raises(SettingsError):
        decode(text)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("User=monitor", {"user": "monitor"}),
        ("port = 2222", {"port": 2222}),
        ("ConnectTimeout 5", {"timeout": 5_000}),
        ("ProxyJump=gate", {"jump": "gate"}),
        ("IDENTITYFILE=/k", {"key": "/k"}),
        (
            "kexalgorithms=+diffie-hellman-group14-sha1",
            {"options": {"KexAlgorithms": "+diffie-hellman-group14-sha1"}},
        ),
        ("ciphers=", {"options": {"Ciphers": ""}}),
    ],
)
def test_options_are_named_as_in_ssh_config(text: str, arguments: dict[str, object]) -> None:
    assert parse_option(text) == arguments


@pytest.mark.parametrize(
    "text", ["", "User", "User=", "Port=ssh", "LocalCommand=reboot", "=x", "Ciphers", "LocalCommand="]
)
def test_options_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_option(text)
