"""Checks register themselves, and the configuration knows the options of each."""

from __future__ import annotations

import pkgutil

import msgspec
import pytest

import agent.checks
from agent.checks import ChecksConfig, CommonOptions, check, check_names, create_checks
from agent.checks.filesystem import Filesystem, FilesystemOptions
from fleetpulse.config import ConfigError, Duration, leaves, load


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    checks: ChecksConfig = ChecksConfig()


def test_every_file_is_a_check_and_every_check_has_a_file():
    files = {module.name for module in pkgutil.iter_modules(agent.checks.__path__)}
    assert files == set(check_names())


def test_the_built_in_checks():
    built_in = "cpu disk filesystem load memory network processes swap temperature uptime"
    assert {c.name for c in create_checks(ChecksConfig())} >= set(built_in.split())


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'cpu' is taken"):
        check("cpu")(dict)


@pytest.mark.parametrize("name", CommonOptions.__struct_fields__)
def test_a_check_cannot_have_the_name_of_a_setting(name):
    with pytest.raises(ValueError, match="is taken"):
        check(name)(dict)


def test_disabled_checks_are_not_created():
    names = [c.name for c in create_checks(ChecksConfig(disabled=("cpu", "load")))]
    assert names == [name for name in check_names() if name not in ("cpu", "load")]


def test_each_creation_has_a_memory_of_its_own():
    first, second = create_checks(ChecksConfig()), create_checks(ChecksConfig())
    assert not {id(c.check) for c in first} & {id(c.check) for c in second}


def test_the_timeout_of_one_check_overrides_that_of_all():
    options = FilesystemOptions(timeout=Duration(9))
    config = msgspec.structs.replace(ChecksConfig(timeout=Duration(2)), filesystem=options)
    timeouts = {c.name: c.timeout for c in create_checks(config)}
    assert timeouts["filesystem"] == 9
    assert timeouts["cpu"] == 2


def test_options_reach_the_check_from_toml_and_environment(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('[checks]\ntimeout = "3s"\n[checks.filesystem]\nexclude_mounts = ["/backup*"]\n')
    config = load(Agent, path, {"X_CHECKS_CPU_TIMEOUT": "500ms", "X_CHECKS_NETWORK_EXCLUDE": "lo,wg*"}, "X")
    created = {c.name: c for c in create_checks(config.checks)}
    assert created["memory"].timeout == 3
    assert created["cpu"].timeout == 0.5
    filesystem = created["filesystem"].check
    assert isinstance(filesystem, Filesystem)
    assert filesystem.options.exclude_mounts == ("/backup*",)
    assert config.checks.network.exclude == ("lo", "wg*")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[checks]\ndisabled = ["cpus"]\n', "no check is named 'cpus'"),
        ("[checks]\ntimeout = 0\n", "timeout: 0 s is less than 0.05 s"),
        ("[checks.disk]\ntimeout = 0\n", r"checks\.disk: timeout: 0 s is less than"),
        ("[checks.processes]\nmax_reads = 0\n", "max_reads: 0 is not at least 1"),
        ("[checks.filesystem]\nexclude_mount = []\n", "did you mean checks.filesystem.exclude_mounts"),
    ],
)
def test_wrong_options_are_named(tmp_path, text, message):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(Agent, path, {}, "X")


def test_every_option_is_a_configuration_key():
    keys = {".".join(path) for path, _ in leaves(Agent)}
    assert {"checks.timeout", "checks.disabled", "checks.cpu.timeout", "checks.disk.exclude"} <= keys
