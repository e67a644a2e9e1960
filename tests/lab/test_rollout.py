"""The playbooks on a lab of many machines: rollout, faults, upgrades, bad releases, uninstall."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import rollout_steps as steps
from tests.lab.rollout import traces
from tests.lab.site import managed_lab

MACHINES = int(os.environ.get("LAB_MACHINES") or 20)


@pytest.mark.timeout(3000)
def test_a_lab_is_rolled_out_looked_after_and_taken_away(tmp_path: Path) -> None:
    with managed_lab(MACHINES, tmp_path, database="h1") as site:
        before = {machine.name: traces(machine) for machine in site.lab.machines}
        steps.check_from_nothing(site)
        steps.roll_out_from_nothing(site)
        steps.change_nothing_again(site)
        steps.say_what_would_change(site)
        steps.kill_agents(site)
        steps.reboot(site)
        steps.freeze(site)
        steps.cut(site)
        steps.switch_off(site)
        steps.upgrade_agents(site)
        steps.upgrade_collector(site)
        steps.go_back_from_bad_agents(site)
        steps.go_back_from_a_bad_collector(site)
        steps.refuse_settings_that_do_not_do(site)
        steps.cut_a_switch_short(site)
        steps.lose_the_interpreter(site)
        steps.install_anew(site)
        steps.uninstall(site, before)
