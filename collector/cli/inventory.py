"""The machines in an inventory: a list of names, or what `ansible-inventory --list` prints. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from fleetpulse.convert import MAX_GROUPS, MAX_NAME

_EVERYBODY = ("all", "ungrouped")  # groups that Ansible itself makes
_MAX_FILE_NAME = 200  # bytes of a machine's name that is to be part of a file's name


class InventoryError(Exception):
    """An inventory makes no sense; the text says where and why."""


def parse_inventory(text: str) -> dict[str, tuple[str, ...]]:
    """The groups of each machine, in the order of the inventory. Raises InventoryError."""
    machines = _parse_ansible(text) if text.lstrip().startswith("{") else _parse_list(text)
    if not machines:
        raise InventoryError("names no machine")
    for name, groups in machines.items():
        _check(name, groups)
    _check_case(machines)
    return machines


def _parse_list(text: str) -> dict[str, tuple[str, ...]]:
    machines: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) > 1:
            raise InventoryError(f"line {number}: one name a line, or the JSON of ansible-inventory --list")
        machines |= dict.fromkeys(words, ())
    return machines


def _parse_ansible(text: str) -> dict[str, tuple[str, ...]]:
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
    return {name: tuple(sorted(groups)) for name, groups in groups_of.items()}


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
    """A name becomes a file's name, and must not lead elsewhere."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise InventoryError(f"{name!r} cannot be a machine's name")
    if len(name.encode(errors="replace")) > _MAX_FILE_NAME or name.startswith("."):
        raise InventoryError(f"{name!r} cannot be the name of a token's file")
    if len(groups) > MAX_GROUPS:
        raise InventoryError(f"{name} is in {len(groups)} groups; at most {MAX_GROUPS} are possible")
    for group in groups:
        if not 0 < len(group) <= MAX_NAME:
            raise InventoryError(f"{name}: a group's name has 1 to {MAX_NAME} characters, not {len(group)}")


def _check_case(machines: Mapping[str, object]) -> None:
    """Names are compared without case, so two that differ only in that are one machine."""
    seen: dict[str, str] = {}
    for name in machines:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise InventoryError(f"{other} and {name} would be the same machine")
