"""The playbooks on three real machines and a collector; tests/lab/test_rollout.py does more, on more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import rollout_steps as steps
from tests.lab.rollout import traces
from tests.lab.site import managed_lab


@pytest.mark.timeout(900)
def test_three_machines_are_rolled_out_upgraded_and_taken_away(tmp_path: Path) -> None:
    # The database is not on the collector's machine here: by its port, with passwords.
    with managed_lab(3, tmp_path, database="h2") as site:
        before = {machine.name: traces(machine) for machine in site.lab.machines}
        steps.check_from_nothing(site)
        steps.roll_out_from_nothing(site)
        steps.change_nothing_again(site)
        steps.upgrade_agents(site)
        steps.go_back_from_bad_agents(site)
        steps.cut_a_switch_short(site)
        steps.change_the_password(site)
        steps.uninstall(site, before)
