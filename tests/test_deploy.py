"""What is under deploy/ says of itself what it does: variables, defaults, documents. tests/lab runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import ROOT

ANSIBLE = ROOT / "deploy" / "ansible"
ROLES = ("agent", "collector", "database")
_VARIABLE = re.compile(r"`(fleetpulse_\w+)`")
_INTERNAL = {
    "fleetpulse_collector_host",  # which the group says
    "fleetpulse_wanted",  # which upgrade.yml says to rollout.yml
}


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def options(role: str) -> dict[str, dict[str, Any]]:
    """What the main entry point of a role takes."""
    specs = loaded(ANSIBLE / "roles" / role / "meta" / "argument_specs.yml")
    return dict(specs["argument_specs"]["main"]["options"])


def of_playbooks() -> set[str]:
    """The variables that playbooks themselves read, with a default."""
    text = "".join(path.read_text() for path in ANSIBLE.glob("*.yml"))
    return set(re.findall(r"(fleetpulse_\w+) \| default\(", text))


def documented() -> set[str]:
    """Those in the table of the document."""
    section = (ROOT / "docs" / "deploy.md").read_text().split("\n## Variables\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in _VARIABLE.findall(row)}


def test_every_variable_is_documented_and_the_other_way_round() -> None:
    known = {name for role in ROLES for name in options(role)} | of_playbooks() | {"fleetpulse_labels"}
    assert documented() == known - _INTERNAL


def test_nothing_is_left_to_be_filled_in() -> None:
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    assert [path.name for path in documents if re.search(r"%[A-Z]+%", path.read_text())] == []


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_an_option_and_is_as_it_says(role: str) -> None:
    specified = options(role)
    defaults = loaded(ANSIBLE / "roles" / role / "defaults" / "main.yml")
    assert set(defaults) - _INTERNAL <= set(specified)
    plain = {name: value for name, value in defaults.items() if "{{" not in str(value)}
    assert {name: specified[name]["default"] for name in plain} == plain


@pytest.mark.parametrize("role", ["collector", "database"])
def test_passwords_are_in_no_log(role: str) -> None:
    secrets = {name: option for name, option in options(role).items() if name.endswith("password")}
    assert len(secrets) == 2
    assert all(option["no_log"] for option in secrets.values())


@pytest.mark.parametrize(
    "secret",
    ["item.password", "fleetpulse_tokens.stdout", "'token', 'create'", "accounts.sql.j2", "missing.sql.j2"],
)
def test_a_task_that_carries_a_secret_is_in_no_log(secret: str) -> None:
    files = (ANSIBLE / "roles").glob("*/tasks/*.yml")
    found = [task for path in files for task in _tasks(loaded(path)) if secret in str(task)]
    assert found
    assert all(task.get("no_log") for task in found)


def _tasks(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [inner for task in content for inner in task.get("block", [task])]


@pytest.mark.parametrize("shell", [["dash"], ["bash"], ["busybox", "sh"]])
def test_any_shell_tells_what_there_is(shell: list[str]) -> None:
    script = (ANSIBLE / "roles" / "release" / "files" / "look.sh").read_text()
    done = subprocess.run(
        shell, input=f"program=agent\n{script}", capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert seen["system"] == "Linux"
    assert seen["arch"]
    assert seen["glibc"].startswith("2.")
    for version in seen["pythons"].split():
        asked = [seen[f"python{version}"], "-c", "import sys; print('%d%d' % sys.version_info[:2])"]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == version
