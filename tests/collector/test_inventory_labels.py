"""The labels that the variables of an Ansible inventory say."""

from __future__ import annotations

import json

import pytest

from collector.cli.ansible_ssh import Refused
from collector.cli.inventory import InventoryError, parse_ansible
from collector.cli.inventory_labels import labels_of


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        ({}, {}),
        ({"site": "berlin", "a": "b"}, {"a": "b", "site": "berlin"}),
        (
            {"rack": 12, "load": 0.5, "canary": True, "old": False},
            {"rack": "12", "load": "0.5", "canary": "true", "old": "false"},
        ),
        ({"empty": "", "blank": " x ", "É": "é=ß"}, {"empty": "", "blank": " x ", "É": "é=ß"}),
        ({"note": {"__ansible_unsafe": "50 %"}}, {"note": "50 %"}),
        ({"k" * 255: "v" * 255}, {"k" * 255: "v" * 255}),
        ({str(number): number for number in range(64)}, {str(number): str(number) for number in range(64)}),
    ],
)
def test_labels(said: dict[str, object], labels: dict[str, str]) -> None:
    assert labels_of({"fleetpulse_labels": said, "other": 1}) == labels


def test_no_labels() -> None:
    assert labels_of({"ansible_host": "192.0.2.1"}) == {}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["site"], "fleetpulse_labels is no dictionary"),
        ("site=berlin", "fleetpulse_labels is no dictionary"),
        (None, "fleetpulse_labels is no dictionary"),
        ({"": "x"}, "called by 1 to 255 printable"),
        ({"k" * 256: "x"}, "called by 1 to 255 printable"),
        ({"a=b": "x"}, "without ="),
        ({"a\nb": "x"}, "called by 1 to 255 printable"),
        ({"a": "v" * 256}, "label a: at most 255 printable"),
        ({"a": "v\x1b[2J"}, "label a: at most 255 printable"),
        ({"a": None}, "label a is neither text"),
        ({"a": ["x"]}, "label a is neither text"),
        ({"a": {"b": "c"}}, "label a is neither text"),
        ({"a": "{{ site }}"}, "label a is a template"),
        ({str(number): number for number in range(65)}, "has 65 labels; at most 64"),
    ],
)
def test_labels_that_are_none(said: object, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        labels_of({"fleetpulse_labels": said})


def test_the_dictionary_of_the_host_replaces_that_of_its_group() -> None:
    inventory = {
        "_meta": {"hostvars": {"a": {"fleetpulse_labels": {"x": 1}}, "b": {}}},
        "g": {"hosts": ["a", "b"], "vars": {"fleetpulse_labels": {"y": 2}}},
    }
    machines = parse_ansible(json.dumps(inventory))
    assert {name: labels_of(machine.variables) for name, machine in machines.items()} == {
        "a": {"x": "1"},
        "b": {"y": "2"},
    }


@pytest.mark.parametrize("text", ["web-1\nweb-2\n", "", '["web-1"]', "{"])
def test_what_is_no_inventory(text: str) -> None:
    """A list of names says nothing of groups and labels, so it must not take them away."""
    with pytest.raises(InventoryError, match="JSON"):
        parse_ansible(text)
