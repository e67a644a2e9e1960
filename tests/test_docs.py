"""docs/configuration.md, docs/rules.md and docs/agent.md say what the programs do, and nothing else."""

from __future__ import annotations

import inspect
import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from agent import cli as agent_cli
from agent.checks import ChecksConfig
from agent.config import AgentConfig, load_agent_config
from agent.measure import Measured, Measurer
from agent.once import as_json
from collector import config as collector_config
from collector import service
from collector.config import Config
from collector.core.rules import Rule
from collector.rules_file import load_rules
from fleetpulse.config import ConfigError, Duration, Size, leaves
from fleetpulse.model import CheckKey, CheckLayout, Layout, Measurement
from tests.mariadb_server import SERVICE, MariadbServer, documented_privileges
from tests.processes import running_site, wait_until

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIGURATION, RULES, AGENT = ("configuration.md", "rules.md", "agent.md")
RELIABILITY, SECURITY, SSH = "reliability.md", "security.md", "ssh.md"


def section(document: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    text = (DOCS / document).read_text(encoding="utf-8")
    level = heading.partition(" ")[0]
    return text.partition(f"\n{heading}\n")[2].partition(f"\n{level} ")[0]


def table(text: str, header: str) -> list[list[str]]:
    """The rows of the first table that begins with this header."""
    rows = text.partition(f"| {header} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in rows.splitlines()[2:]]


def code(cell: str) -> str:
    """What a table cell shows as code."""
    ticks = re.match(r"`*", cell)
    assert ticks is not None
    return cell.removeprefix(ticks[0]).removesuffix(ticks[0]).strip()


def blocks(document: str, language: str) -> list[str]:
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.+?)^```", text, re.DOTALL | re.MULTILINE)


def defaults(config: msgspec.Struct, above: str = "") -> dict[str, object]:
    """Key path and value of every leaf."""
    found: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(config).items():
        if isinstance(value, msgspec.Struct):
            found |= defaults(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def parsed(cell: str, like: object) -> object:
    """The value in a table cell, in the type of `like`."""
    if cell == "none":
        return None
    value = tomllib.loads(f"value = {code(cell)}")["value"]
    if isinstance(like, (Duration, Size)):
        return type(like).parse(value)
    return tuple(value) if isinstance(value, list) else value


def assert_keys_documented(rows: list[list[str]], exist: Mapping[str, object]) -> None:
    assert [code(key) for key, _, _ in rows] == list(exist)
    for key, cell, _ in rows:
        expected = exist[code(key)]
        expected = str(expected) if isinstance(expected, Path) else expected
        assert parsed(cell, expected) == expected, key


@pytest.fixture
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state directory's default is another for other users."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_the_collectors_keys_and_defaults() -> None:
    exist = defaults(Config())
    assert set(exist) == {".".join(path) for path, _ in leaves(Config)}
    assert_keys_documented(table(section(CONFIGURATION, "## The collector's keys"), "key"), exist)


@pytest.mark.usefixtures("_as_root")
def test_the_agents_keys_and_defaults() -> None:
    rows = table(section(CONFIGURATION, "## The agent's keys"), "key")
    *own, checks = rows
    assert code(checks[0]) == "checks"
    exist = {
        key: value for key, value in defaults(AgentConfig()).items() if key.partition(".")[0] != "checks"
    }
    assert_keys_documented(own, exist)


def test_the_variables_shown_are_those_of_their_keys() -> None:
    kinds = {"collector": Config, "agent": AgentConfig}
    for cell, variable in table(section(CONFIGURATION, "### Only the environment"), "key"):
        program, _, key = cell.partition(": ")
        assert code(key) in {".".join(path) for path, _ in leaves(kinds[program])}
        prefix = {"collector": "FLEETPULSE", "agent": "FLEETPULSE_AGENT"}[program]
        assert code(variable) == f"{prefix}_{code(key).replace('.', '_').upper()}"


def set_keys(text: str) -> set[str]:
    """Every key in an example, also those that are commented out."""
    everything = tomllib.loads(re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE))

    def paths(data: Mapping[str, Any], above: str) -> set[str]:
        found: set[str] = set()
        for key, value in data.items():
            found |= paths(value, f"{above}{key}.") if isinstance(value, dict) else {above + key}
        return found

    return paths(everything, "")


def test_the_collectors_example_is_every_key_at_its_default() -> None:
    path = DOCS / "collector.example.toml"
    loaded = collector_config.load(path, {}).config
    assert set_keys(path.read_text(encoding="utf-8")) == set(defaults(Config()))
    assert msgspec.structs.replace(loaded, name="") == Config()


@pytest.mark.usefixtures("_as_root")
def test_the_agents_example_is_every_key_at_its_default() -> None:
    path = DOCS / "agent.example.toml"
    of_one_check = {key for key in defaults(ChecksConfig(), "checks.") if key.count(".") > 1}
    assert set_keys(path.read_text(encoding="utf-8")) == set(defaults(AgentConfig())) - of_one_check
    assert load_agent_config(path, {}).config == AgentConfig()


def test_every_configuration_shown_is_accepted(tmp_path: Path) -> None:
    seen = []
    for text in blocks(CONFIGURATION, "toml") + blocks(RULES, "toml"):
        name = text.partition("\n")[0].removeprefix("# ")
        seen.append(name)
        path = tmp_path / name
        path.write_text(text.replace("/etc/fleetpulse/", f"{tmp_path}/"), encoding="utf-8")
        password = tmp_path / "database.password"
        password.write_text("secret\n", encoding="utf-8")
        password.chmod(0o640)
        if name == "collector.toml":
            loaded = collector_config.load(path, {})
            assert loaded.database_password == ("secret" if "database_password_file" in text else "")
        elif name == "agent.toml":
            load_agent_config(path, {})
        else:
            assert len(load_rules(path).rules) > len(load_rules(None).rules)
    assert set(seen) == {"collector.toml", "agent.toml", "rules.toml"}


ERRORS = table(section(CONFIGURATION, "## Errors"), "setting") + table(
    section(RULES, "## Reloading"), "rules file"
)


@pytest.mark.parametrize(("setting", "said"), ERRORS, ids=[code(setting) for setting, _ in ERRORS])
def test_every_error_shown_is_the_programs(
    setting: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _, message = code(said).partition(": ")
    environ = {}
    path = None
    if code(setting).startswith("FLEETPULSE_"):
        name, _, value = code(setting).partition("=")
        environ[name] = value
    else:
        monkeypatch.chdir(tmp_path)
        shown = re.search(r"\b(?:collector|agent|rules)\.toml", message)
        path = Path(shown[0] if shown else "collector.toml")
        path.write_text(code(setting).replace("; ", "\n") + "\n", encoding="utf-8")
    load: Callable[[], object]
    if path is not None and path.name == "rules.toml":
        load = partial(load_rules, path)
    elif program == "fleet-collector":
        load = partial(collector_config.load, path, environ)
    else:
        load = partial(load_agent_config, path, environ)
    with pytest.raises(ConfigError) as raised:
        load()
    assert str(raised.value) == message


def test_the_exit_codes() -> None:
    documented: dict[str, set[int]] = {}
    for program, status, _ in table(section(CONFIGURATION, "## Exit codes"), "program"):
        documented.setdefault(code(program), set()).add(int(status))
    usage = click.UsageError.exit_code
    of_service = {service.EXIT_UNAVAILABLE, service.EXIT_SOFTWARE, service.EXIT_CONFIG}
    assert documented == {
        "fleet-collector": {0, usage} | of_service,
        "fleet-agent": {0, agent_cli.REFUSED, agent_cli.UNKNOWN},
    }


def test_the_keys_of_a_rule() -> None:
    text = section(RULES, "## Keys")
    [(key, default, _)] = table(text, "key")
    assert (code(key), code(default)) == ("builtin", "true")
    rows = table(text.partition("In each `[[rule]]`")[2], "key")
    fields = {name: field.default for name, field in inspect.signature(Rule).parameters.items()}
    assert {code(key) for key, _, _ in rows} == set(fields)
    for key, cell, _ in rows:
        documented = inspect.Parameter.empty if cell == "required" else parsed(cell, None)
        assert documented == fields[code(key)], key


def test_builtin_false_leaves_only_the_files_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("builtin = false\n", encoding="utf-8")
    assert load_rules(path).rules == ()


def default_rules() -> list[dict[str, Any]]:
    with (ROOT / "collector" / "default_rules.toml").open("rb") as file:
        rules: list[dict[str, Any]] = tomllib.load(file)["rule"]
    return rules


def test_the_builtin_rules_are_those_of_the_file() -> None:
    columns = ("warning", "warning_clear", "critical", "critical_clear", "occurrences")
    documented = [
        Rule(
            check=code(check),
            measurement=code(measurement),
            **{
                name: (int if name == "occurrences" else float)(cell)
                for name, cell in zip(columns, cells, strict=True)
                if cell != "none"
            },
        )
        for check, measurement, *cells in table(section(RULES, "## The built-in rules"), "check")
    ]
    assert documented == list(load_rules(None).rules) == [Rule(**rule) for rule in default_rules()]


def test_every_measurement_judged_is_documented_for_its_check() -> None:
    text = (DOCS / "checks.md").read_text(encoding="utf-8")
    described = {code(row[0]): row[2] for row in table(text, "check")}
    for rule in default_rules():
        measurements = described[rule["check"]]
        name, _, value = re.sub(r"=(\w+)}", r"=…} \1", rule["measurement"]).partition(" ")
        assert f"`{name}`" in measurements, rule
        assert not value or f"`{value}`" in measurements, rule


def test_every_measurement_judged_is_made_by_its_check() -> None:
    layout = Measurer(ChecksConfig()).measure(time.monotonic(), 0).layout
    made: dict[str, set[str]] = {}
    for key, measurement in layout.series:
        made.setdefault(key.name, set()).add(measurement.name)
    assert {"cpu", "load", "memory", "processes", "uptime"} <= set(made)
    # Not every file system limits its inodes; what this machine has none of is left out altogether.
    may_lack = {"system.filesystem.inodes.utilization"}
    for rule in default_rules():
        if rule["check"] in made and rule["measurement"] not in may_lack:
            assert rule["measurement"] in made[rule["check"]]


def agent_help(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        agent_cli.main([*arguments, "--help"])
    return capsys.readouterr().out


def long_options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def option_cells(text: str) -> set[str]:
    return {option for row in table(text, "option") for option in long_options(row[0])}


def test_every_command_and_option_of_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    top = agent_help(capsys)
    commands = re.findall(r"^    ([a-z-]+)(?=\s)", top.partition("options:")[0], re.MULTILINE)
    headings = re.findall(r"^## (.+)$", (DOCS / AGENT).read_text(encoding="utf-8"), re.MULTILINE)
    assert commands == [heading for heading in headings if re.fullmatch(r"[a-z-]+", heading)]
    common = option_cells(section(AGENT, "## For every command"))
    assert common == {"--config", "--version", "--help"}
    assert long_options(top.partition("options:")[2].partition("examples:")[0]) == {"--version", "--help"}
    for command in commands:
        exist = long_options(agent_help(capsys, command).partition("options:")[2])
        assert exist == {"--config", "--help"} | option_cells(section(AGENT, f"## {command}")), command


def shape(value: object) -> object:
    """The keys at every level."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


def test_once_prints_the_documented_json() -> None:
    measurement = Measurement("system.filesystem.utilization", "1")
    layout = Layout((CheckLayout(CheckKey("filesystem", "/"), (measurement,)),))
    printed = as_json(Measured(1735787045678, layout, (0.222,), ()))
    [documented] = blocks(AGENT, "json")
    assert shape(json.loads(printed)) == shape(json.loads(documented))


def test_every_log_line_named_is_in_the_agent() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "agent").glob("*.py")]
    for line, _ in table(section(AGENT, "## What it logs"), "line"):
        assert any(code(line) in source for source in sources), line


@pytest.mark.parametrize(("document", "least"), [(RELIABILITY, 40), (SECURITY, 20), (SSH, 20)])
def test_every_test_that_shows_a_promise_exists(document: str, least: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / document).read_text(encoding="utf-8"))
    assert len(named) > least
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path}::{name}"


def test_links_lead_somewhere() -> None:
    for document in (CONFIGURATION, RULES, AGENT, RELIABILITY, SECURITY, SSH):
        text = (DOCS / document).read_text(encoding="utf-8")
        for name, _, anchor in (
            link.partition("#") for link in re.findall(r"]\(([\w.]+(?:#[\w-]+)?)\)", text)
        ):
            target = (DOCS / name).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.+)$", target, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{document}: {name}#{anchor}"


def test_the_accounts_shown_get_what_the_security_page_grants() -> None:
    shown = re.findall(r"^GRANT (.+) ON ", "".join(blocks(CONFIGURATION, "sql")), re.MULTILINE)
    assert set(shown) <= set(documented_privileges().values())
    assert documented_privileges()[SERVICE] in shown


def test_the_documented_account_is_enough(mariadb: MariadbServer, tmp_path: Path) -> None:
    """A collector runs on the account that the SQL shown makes, once somebody else made the schema."""
    statements = [line.strip() for text in blocks(CONFIGURATION, "sql") for line in text.split(";\n")]
    accounts = ("fleetpulse@localhost", "fleetpulse@'127.0.0.1'")
    password = tmp_path / "database.password"
    password.write_text("a long random password\n", encoding="utf-8")
    password.chmod(0o640)
    url = f"mysql://fleetpulse@127.0.0.1:{mariadb.port}/fleetpulse"
    own = {"FLEETPULSE_DATABASE_PASSWORD_FILE": str(password)}
    try:
        for statement in filter(None, statements):
            mariadb.query(statement)
        with running_site(url, tmp_path) as site:
            denied = site.cli("db", "upgrade", **own)
            assert "CREATE command denied" in denied.stderr
            site.cli("db", "upgrade", check=True, FLEETPULSE_DATABASE=mariadb.url("fleetpulse"))
            collector = site.collector(upgrade=False, database_password_file=str(password))
            site.agent("one")
            wait_until(lambda: "1 fresh" in site.cli("status", **own).stdout)
            site.cli("remove", "one", "--yes", check=True, **own)
            assert collector.stop() == 0
    finally:
        for account in accounts:
            mariadb.query(f"DROP USER IF EXISTS {account}")
