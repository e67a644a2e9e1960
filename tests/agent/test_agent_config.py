from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agent import config as agent_config
from agent.config import ConfigError, as_toml, default_state_dir, load_agent_config
from agent.target import TargetError, check_plaintext_target, parse_endpoint
from collector import config as collector_config


@pytest.fixture(autouse=True)
def no_machine_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_config, "DEFAULT_PATH", tmp_path / "default.toml")


def test_defaults() -> None:
    loaded = load_agent_config(None, {})
    config = loaded.config
    assert loaded.path is None
    assert (config.collector, config.tls, config.interval, config.time_to_live) == ("", "on", 15, 45)
    assert (config.spool.max_age, config.spool.max_size) == (86_400, 64 << 20)
    assert config.ack_deadline == 15


def test_file_then_environment(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('interval = "5s"\ngroups = ["a"]\n[spool]\nmax_age = "2h"\n')
    environ = {"FLEETPULSE_AGENT_INTERVAL": "2s", "FLEETPULSE_AGENT_GROUPS": "lab, east", "OTHER": "x"}
    loaded = load_agent_config(file, environ)
    assert (loaded.config.interval, loaded.config.groups) == (2, ("lab", "east"))
    assert (loaded.config.time_to_live, loaded.config.ack_deadline) == (6, 10)
    assert loaded.config.spool.max_age == 7200
    assert loaded.variables == ("FLEETPULSE_AGENT_GROUPS", "FLEETPULSE_AGENT_INTERVAL")
    assert load_agent_config(None, {"FLEETPULSE_AGENT_CONFIG": str(file)}).path == file
    (tmp_path / "default.toml").write_text('interval = "7s"')
    assert load_agent_config(None, {}).config.interval == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('ttl = "10s"', "line 1: ttl: 10 s is less than the interval of 15 s"),
        ('\ninterval = "50ms"', "line 2: interval: 0.05 s is less than 0.1 s"),
        ('interval = "300d"', "line 1: interval: a time-to-live of .* is more than"),
        ("[spool]\n\nmax_size = 100", "line 3: spool.max_size: 100 B is less than 65536 B"),
        ('[spool]\nmax_age = "1s"', "line 2: spool.max_age: 1 s is less than 60 s"),
        ('ack_timeout = "1ms"', "line 1: ack_timeout: 0.001 s is less than 1 s"),
        ('groups = ["a", ""]', "line 1: groups: a group's name has 1 to 255 characters"),
        (
            'tls = "off"\ncollector = "10.0.0.1:1"',
            "line 2: collector: 10.0.0.1:1 is another machine; plaintext",
        ),
        ('collector = "10.0.0.1"', r"line 1: collector: expected HOST:PORT or \[IPV6\]:PORT, got '10.0.0.1'"),
        ('collector = "unix:/run/f.sock"', 'line 1: collector: .*; a unix socket is for tls = "off"'),
        ('intervall = "5s"', "line 1: intervall: no such key; did you mean interval?"),
        ("[log]\nformat = 'xml'", "line 2: log.format: invalid enum value 'xml'"),
        ("[checks]\ntimeout = 'soon'", "line 2: checks.timeout: expected a duration"),
        ("interval = ", "agent.toml: Invalid value"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_agent_config(file, {})
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FLEETPULSE_AGENT_TTL", "1s", "environment variable FLEETPULSE_AGENT_TTL: 1 s is less than"),
        ("FLEETPULSE_AGENT_INTERVAL", "x", "environment variable FLEETPULSE_AGENT_INTERVAL: expected a dur"),
        ("FLEETPULSE_AGENT_SPOOL_SIZE", "1", "names no configuration key; did you mean .*SPOOL_MAX_SIZE"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_agent_config(None, {name: value})


def test_only_the_default_file_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load_agent_config(tmp_path / "missing.toml", {})
    with pytest.raises(ConfigError, match=r"cannot read .*No such file"):
        load_agent_config(None, {"FLEETPULSE_AGENT_CONFIG": str(tmp_path / "missing.toml")})


def test_what_is_shown_can_be_loaded_again(tmp_path: Path) -> None:
    config = load_agent_config(None, {"FLEETPULSE_AGENT_HOSTNAME": 'a "quoted" ü'}).config
    file = tmp_path / "shown.toml"
    file.write_text(as_toml(config), encoding="utf-8")
    again = load_agent_config(file, {}).config
    assert as_toml(again) == as_toml(config)
    assert tomllib.loads(as_toml(config))["hostname"] == 'a "quoted" ü'


def test_state_of_a_user_and_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state_dir() == Path("/var/lib/fleetpulse-agent")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_state_dir() == Path("/home/u/.local/state/fleetpulse-agent")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_state_dir() == Path("/state/fleetpulse-agent")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_state_dir() == Path("/home/u/.local/state/fleetpulse-agent")


@pytest.mark.parametrize(
    ("settings", "enrolled_at", "target"),
    [
        ({}, "a.example:1", "a.example:1"),
        ({}, None, ""),
        ({"COLLECTOR": "b.example:2"}, "a.example:1", "b.example:2"),
        ({"TLS": "off"}, "a.example:1", "127.0.0.1:18443"),
        ({"TLS": "off", "COLLECTOR": "unix:/run/f.sock"}, None, "unix:/run/f.sock"),
    ],
)
def test_where_reports_go(settings: dict[str, str], enrolled_at: str | None, target: str) -> None:
    config = load_agent_config(
        None, {f"FLEETPULSE_AGENT_{name}": value for name, value in settings.items()}
    ).config
    assert config.target(enrolled_at) == target
    assert tomllib.loads(as_toml(config, enrolled_at))["collector"] == target


@pytest.mark.parametrize(
    ("target", "endpoint"),
    [
        ("fleet.example:18443", ("fleet.example", 18443)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_an_endpoint_and_its_text(target: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(target) == endpoint
    assert str(parse_endpoint(target)) == target


@pytest.mark.parametrize(
    "target", ["", "fleet.example", "fleet.example:0", "2001:db8::1:5", "http://x:1", "a b:1"]
)
def test_no_endpoint(target: str) -> None:
    with pytest.raises(TargetError, match="expected HOST:PORT"):
        parse_endpoint(target)


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "127.8.9.10:65535", "[::1]:18443", "localhost:1", "unix:/run/f.sock", "unix:f.sock"],
)
def test_plaintext_stays_on_the_machine(target: str) -> None:
    check_plaintext_target(target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("10.1.2.3:18443", "plaintext is only allowed to loopback"),
        ("collector.example.org:18443", "plaintext is only allowed to loopback"),
        ("localhost.example.org:18443", "plaintext is only allowed to loopback"),
        ("[2001:db8::1]:18443", "plaintext is only allowed to loopback"),
        ("0.0.0.0:18443", "plaintext is only allowed to loopback"),
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:0", "expected HOST:PORT"),
        ("127.0.0.1:65536", "expected HOST:PORT"),
        ("::1:18443", "expected HOST:PORT"),
        ("dns:///127.0.0.1:1", "expected HOST:PORT"),
        ("unix:", "socket's path"),
        ("", "expected HOST:PORT"),
    ],
)
def test_other_targets_are_refused(target: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        check_plaintext_target(target)


def test_a_default_file_that_cannot_be_seen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bool:  # root, as whom tests may run, is denied nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", denied)
    for load in (lambda: load_agent_config(None, {}), lambda: collector_config.load(None, {})):
        with pytest.raises(ConfigError, match=r"cannot read .*[.]toml: Permission denied"):
            load()
