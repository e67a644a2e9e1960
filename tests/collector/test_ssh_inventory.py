"""What the variables of an Ansible inventory say of how a machine is reached."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collector.cli.ansible_ssh import Refused, understand
from collector.cli.inventory import InventoryError, parse_inventory, parse_machines
from collector.core.ssh_settings import SshSettings


@pytest.mark.parametrize(
    ("variables", "settings"),
    [
        ({}, SshSettings()),
        ({"ansible_host": "192.0.2.7"}, SshSettings(address="192.0.2.7")),
        ({"ansible_port": 2222, "ansible_user": "root"}, SshSettings(port=2222, user="root")),
        ({"ansible_port": "2222"}, SshSettings(port=2222)),
        (
            {"ansible_ssh_host": "a", "ansible_ssh_port": "23", "ansible_ssh_user": "b"},
            SshSettings(address="a", port=23, user="b"),
        ),
        (
            {"ansible_host": "a", "ansible_ssh_host": "b"},
            SshSettings(address="b"),
        ),  # the later wins in Ansible
        ({"ansible_private_key_file": "~/k"}, SshSettings(key="~/k")),
        ({"ansible_ssh_private_key_file": "/k"}, SshSettings(key="/k")),
        ({"ansible_host": {"__ansible_unsafe": "a"}}, SshSettings(address="a")),
        ({"ansible_connection": "ansible.builtin.ssh", "ansible_user": "b"}, SshSettings(user="b")),
        (
            {"fleetpulse_ssh_interval": "1m", "fleetpulse_ssh_timeout": 5},
            SshSettings(interval=60_000, timeout=5_000),
        ),
        ({"ansible_user": None, "ansible_host": ""}, SshSettings()),
    ],
)
def test_plain_variables(variables: dict[str, Any], settings: SshSettings) -> None:
    assert understand(variables).settings == settings


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("-J gate", SshSettings(jump="gate")),
        ("-Jroot@gate:2222,inner", SshSettings(jump="root@gate:2222,inner")),
        ("-oProxyJump=gate", SshSettings(jump="gate")),
        ("-o ProxyJump=gate", SshSettings(jump="gate")),
        ("-o 'ProxyJump gate'", SshSettings(jump="gate")),
        ("-o proxyjump=none", SshSettings(jump="none")),
        ("-qAJ gate", SshSettings(jump="gate")),
        ("-4 -p 23 -l me -i /k", SshSettings(port=23, user="me", key="/k")),
        ("""-o ProxyCommand="ssh -W %h:%p -q me@gate" """, SshSettings(jump="me@gate")),
        (
            """-o ProxyCommand='/usr/bin/ssh -l me -p 23 -W "[%h]:%p" gate' """,
            SshSettings(jump="me@gate:23"),
        ),
        ("""-o ProxyCommand="ssh -J first -W %h:%p gate" """, SshSettings(jump="first,gate")),
        ("""-o ProxyCommand="ssh gate nc %h %p" """, SshSettings(jump="gate")),
        ("-o ProxyCommand=none", SshSettings(jump="none")),
        (
            "-c aes128-ctr -o KexAlgorithms=a,b -o macs=c",
            SshSettings(options={"Ciphers": "aes128-ctr", "KexAlgorithms": "a,b", "MACs": "c"}),
        ),
        ("-o ConnectTimeout=5", SshSettings(timeout=5_000)),
        ("-o ConnectTimeout=60", SshSettings(timeout=15_000)),
    ],
)
@pytest.mark.parametrize("name", ["ansible_ssh_common_args", "ansible_ssh_extra_args", "ansible_ssh_args"])
def test_arguments_of_ssh(name: str, arguments: str, settings: SshSettings) -> None:
    assert understand({name: arguments}).settings == settings


def test_a_variable_wins_over_an_argument_and_the_first_argument_over_the_next() -> None:
    said = understand(
        {
            "ansible_port": 1,
            "ansible_ssh_args": "-p 2 -J one",
            "ansible_ssh_common_args": "-J two",
            "ansible_ssh_extra_args": "-l me",
        }
    )
    assert said.settings == SshSettings(port=1, jump="one", user="me")


def test_what_has_no_meaning_is_told() -> None:
    text = "-C -o ControlPersist=60s -o StrictHostKeyChecking=no -L 1:a:2 -o ProxyCommand='corkscrew %h %p'"
    said = understand({"ansible_ssh_common_args": text})
    assert said.settings == SshSettings()
    assert said.ignored == ("-C", "ControlPersist", "StrictHostKeyChecking", "-L", "ProxyCommand")


@pytest.mark.parametrize("connection", ["local", "winrm", "community.docker.docker"])
def test_other_connections(connection: str) -> None:
    # What cannot be understood does not matter then.
    said = understand({"ansible_connection": connection, "ansible_host": "{{ x }}"})
    assert said.other_connection == connection.rpartition(".")[2]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"ansible_user": "{{ admin }}"}, "ansible_user is a template"),
        ({"ansible_ssh_common_args": "-J {{ gate }}"}, "ansible_ssh_common_args is a template"),
        ({"ansible_host": "{% if x %}a{% endif %}"}, "ansible_host is a template"),
        ({"ansible_port": "ssh"}, "ansible_port: 'ssh' is no whole number"),
        ({"ansible_port": 99_999}, "port: 99999 is not between"),
        ({"ansible_port": True}, "ansible_port is neither text nor a number"),
        ({"ansible_user": ["root"]}, "ansible_user is neither text nor a number"),
        ({"ansible_host": "-oProxyCommand=evil"}, "begins with a dash"),
        ({"ansible_host": "a b"}, "has blanks"),
        ({"ansible_ssh_common_args": "-o 'x"}, "ansible_ssh_common_args: No closing quotation"),
        ({"fleetpulse_ssh_interval": "soon"}, "fleetpulse_ssh_interval: expected a duration"),
        ({"fleetpulse_ssh_interval": "10ms"}, "interval: 0.01 s is too short"),
    ],
)
def test_what_cannot_be_understood(variables: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        understand(variables)


EXPORTED = {
    "_meta": {"hostvars": {"web-1": {"own": "host"}}},
    "all": {"children": ["ungrouped", "site"], "vars": {"a": "all", "b": "all", "c": "all", "own": "all"}},
    "site": {"children": ["web", "db"], "vars": {"b": "site", "c": "site"}},
    "web": {"hosts": ["web-1", "web-2"], "vars": {"c": "web"}},
    "db": {"hosts": ["db-1"]},
    "zoo": {"hosts": ["web-2"], "vars": {"c": "zoo", "d": "zoo"}},
    "ungrouped": {"hosts": ["lone"], "vars": {"e": "alone"}},
}


def test_variables_of_groups_count_as_in_ansible() -> None:
    machines = parse_machines(json.dumps(EXPORTED))
    assert machines["web-1"].groups == ("site", "web")
    assert machines["web-1"].variables == {"a": "all", "b": "site", "c": "web", "own": "host"}
    # web is deeper than zoo, so it comes last.
    assert machines["web-2"].variables == {"a": "all", "b": "site", "c": "web", "d": "zoo", "own": "all"}
    assert machines["lone"].variables == {"a": "all", "b": "all", "c": "all", "e": "alone", "own": "all"}
    assert parse_inventory(json.dumps(EXPORTED))["db-1"] == ("db", "site")


def test_groups_in_a_circle_end() -> None:
    circle = {
        "a": {"hosts": ["x"], "children": ["b"], "vars": {"v": "a"}},
        "b": {"hosts": ["y"], "children": ["a"]},
    }
    assert parse_machines(json.dumps(circle))["y"].variables == {"v": "a"}


@pytest.mark.parametrize(
    ("inventory", "reason"),
    [
        ({"g": {"hosts": ["a"], "vars": ["x"]}}, "group g: vars is no object"),
        ({"_meta": {"hostvars": {"a": ["x"]}}, "g": {"hosts": ["a"]}}, "_meta.hostvars of a is no object"),
    ],
)
def test_variables_that_are_none(inventory: object, reason: str) -> None:
    with pytest.raises(InventoryError, match=reason):
        parse_machines(json.dumps(inventory))


@pytest.mark.parametrize("text", ['["a", "b"]', '"a"', "12", "null", "[]"])
def test_other_json_is_no_list_of_names(text: str) -> None:
    with pytest.raises(InventoryError, match="is JSON, and no object"):
        parse_machines(text)


def test_only_names_of_files_are_as_strict_as_files() -> None:
    text = json.dumps({"g": {"hosts": [".hidden"]}})
    assert ".hidden" in parse_machines(text)
    with pytest.raises(InventoryError, match="name of a token's file"):
        parse_inventory(text)
