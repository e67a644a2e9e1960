"""The labels of a machine, as the variables of an Ansible inventory say them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from collector.cli.ansible_ssh import Refused
from collector.cli.inventory import is_template, unwrapped
from fleetpulse.convert import MAX_GROUPS, MAX_NAME

VARIABLE = "fleetpulse_labels"
_MOST = MAX_GROUPS  # a host has no more labels than it can have groups


def labels_of(variables: Mapping[str, object]) -> dict[str, str]:
    """The labels by their names. Raises Refused."""
    said = variables.get(VARIABLE, {})
    if not isinstance(said, dict):
        raise Refused(f"{VARIABLE} is no dictionary")
    if len(said) > _MOST:
        raise Refused(f"{VARIABLE} has {len(said)} labels; at most {_MOST} are possible")
    return {_name(name): _content(name, unwrapped(value)) for name, value in sorted(said.items())}


def _name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or "=" in name:
        raise Refused(f"label {name!r}: a label is called by 1 to {MAX_NAME} printable characters without =")
    return name


def _content(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise Refused(f"label {name} is neither text, a number, true nor false")
    text = str(value)
    if is_template(text):
        raise Refused(f"label {name} is a template, {text!r}, which only Ansible can fill in")
    if len(text) > MAX_NAME or not text.isprintable():
        raise Refused(f"label {name}: at most {MAX_NAME} printable characters, not {text!r}")
    return text
