"""The machines in an inventory: a list of names, or what `ansible-inventory --list` prints. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fleetpulse.convert import MAX_GROUPS, MAX_NAME

_EVERYBODY = ("all", "ungrouped")  # groups that Ansible itself makes
_TEMPLATE = ("{{", "{%")
_MAX_FILE_NAME = 200  # bytes of a machine's name that is to be part of a file's name


class InventoryError(Exception):
    """An inventory makes no sense; the text says where and why."""


class Machine(NamedTuple):
    """A machine's groups, and the variables that hold for it, those of its groups included."""

    groups: tuple[str, ...] = ()
    variables: Mapping[str, object] = {}


def parse_inventory(text: str) -> dict[str, tuple[str, ...]]:
    """The groups of each machine, whose names can be files' names. Raises InventoryError."""
    machines = {name: machine.groups for name, machine in parse_machines(text).items()}
    for name in machines:
        _check_file_name(name)
    return machines


def parse_machines(text: str) -> dict[str, Machine]:
    """The machines, in the order of the inventory. Raises InventoryError."""
    if text.lstrip().startswith("{"):
        return parse_ansible(text)
    return _checked(_parse_list(_no_json(text)))


def parse_ansible(text: str) -> dict[str, Machine]:
    """The machines of the JSON of ansible-inventory --list, and of nothing else. Raises InventoryError."""
    if not text.lstrip().startswith("{"):
        raise InventoryError("is not the JSON of ansible-inventory --list")
    return _checked(_parse_ansible(text))


def unwrapped(value: object) -> object:
    """The value of a variable, without the mark by which Ansible says that a text is no template."""
    if isinstance(value, dict) and isinstance(value.get("__ansible_unsafe"), str):
        return value["__ansible_unsafe"]
    return value


def is_template(text: str) -> bool:
    """Whether only Ansible can fill it in."""
    return any(mark in text for mark in _TEMPLATE)


def _checked(machines: dict[str, Machine]) -> dict[str, Machine]:
    if not machines:
        raise InventoryError("names no machine")
    for name, machine in machines.items():
        _check(name, machine.groups)
    _check_case(machines)
    return machines


def _no_json(text: str) -> str:
    """A list, which other JSON than that of an inventory is not."""
    try:
        json.loads(text)
    except ValueError:
        return text
    raise InventoryError("is JSON, and no object as that of ansible-inventory --list")


def _parse_list(text: str) -> dict[str, Machine]:
    machines: dict[str, Machine] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) > 1:
            raise InventoryError(f"line {number}: one name a line, or the JSON of ansible-inventory --list")
        machines |= dict.fromkeys(words, Machine())
    return machines


def _parse_ansible(text: str) -> dict[str, Machine]:
    try:
        inventory = json.loads(text)
    except ValueError as error:
        raise InventoryError(f"is no JSON: {error}") from None
    known = inventory.pop("_meta", {})
    hostvars = known.get("hostvars", {}) if isinstance(known, dict) else {}
    if not isinstance(hostvars, dict):
        raise InventoryError("_meta.hostvars is no object")
    groups_of: dict[str, set[str]] = {}
    for group in inventory:
        for name in _members(inventory, group):
            groups = groups_of.setdefault(name, set())
            if group not in _EVERYBODY:
                groups.add(group)
    for name in hostvars:
        groups_of.setdefault(name, set())
    variables_of = _group_variables(inventory)
    return {
        name: Machine(tuple(sorted(groups)), _variables(name, groups, variables_of, hostvars))
        for name, groups in groups_of.items()
    }


def _group_variables(inventory: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """What --export and many scripts leave with the groups, in the order in which Ansible lets it count.

    The group nearer to the machine wins, and of two that are equally near the later one by name.
    """
    found = {}
    for group, content in inventory.items():
        variables = content.get("vars", {}) if isinstance(content, dict) else {}
        if not isinstance(variables, dict):
            raise InventoryError(f"group {group}: vars is no object")
        if variables:
            found[group] = variables
    if not found:
        return {}
    depths = _depths(inventory)
    return {group: found[group] for group in sorted(found, key=lambda group: (depths[group], group))}


def _depths(inventory: Mapping[str, object]) -> dict[str, int]:
    """How many groups are around each one, on the longest way."""
    depths = dict.fromkeys(inventory, 0)
    for _ in inventory:  # as often as the longest way can be; a circle ends there, too
        deeper = {
            child: depths[group] + 1
            for group, content in inventory.items()
            if isinstance(content, dict)
            for child in _names(content, "children", group)
            if child in depths and depths[child] <= depths[group]
        }
        if not deeper:
            break
        depths |= deeper
    return {group: 0 if group == "all" else depth + 1 for group, depth in depths.items()}


def _variables(
    name: str,
    groups: set[str],
    variables_of: Mapping[str, Mapping[str, object]],
    hostvars: Mapping[str, object],
) -> Mapping[str, object]:
    own = hostvars.get(name, {})
    if not isinstance(own, dict):
        raise InventoryError(f"_meta.hostvars of {name} is no object")
    merged: dict[str, object] = {}
    for group, variables in variables_of.items():
        if group in groups or group == "all" or (group == "ungrouped" and not groups):
            merged |= variables
    return merged | own


def _members(inventory: Mapping[str, object], group: str) -> Iterator[str]:
    """The machines of a group and of the groups in it."""
    waiting, seen = [group], {group}
    while waiting:
        name = waiting.pop()
        content = inventory.get(name, {})
        if not isinstance(content, dict):
            raise InventoryError(f"group {name} is no object; give the JSON of ansible-inventory --list")
        yield from _names(content, "hosts", name)
        for child in _names(content, "children", name):
            if child not in seen:
                seen.add(child)
                waiting.append(child)


def _names(content: Mapping[str, object], key: str, group: str) -> list[str]:
    names = content.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InventoryError(f"group {group}: {key} is no list of names")
    return names


def _check(name: str, groups: tuple[str, ...]) -> None:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise InventoryError(f"{name!r} cannot be a machine's name")
    if len(groups) > MAX_GROUPS:
        raise InventoryError(f"{name} is in {len(groups)} groups; at most {MAX_GROUPS} are possible")
    for group in groups:
        if not 0 < len(group) <= MAX_NAME:
            raise InventoryError(f"{name}: a group's name has 1 to {MAX_NAME} characters, not {len(group)}")


def _check_file_name(name: str) -> None:
    """A name becomes a file's name, and must not lead elsewhere."""
    if len(name.encode(errors="replace")) > _MAX_FILE_NAME or name.startswith("."):
        raise InventoryError(f"{name!r} cannot be the name of a token's file")


def _check_case(machines: Mapping[str, object]) -> None:
    """Names are compared without case, so two that differ only in that are one machine."""
    seen: dict[str, str] = {}
    for name in machines:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise InventoryError(f"{other} and {name} would be the same machine")
