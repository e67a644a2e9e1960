"""collector-cli ssh: machines without an agent, and how silent ones are asked."""

from __future__ import annotations

import click

from collector.cli import (
    ssh_add,
    ssh_group,
    ssh_import,
    ssh_list,
    ssh_probe,
    ssh_remove,
    ssh_test,
    ssh_trust,
)


@click.group("ssh", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Say which machines are reached over SSH, how, and which host keys are trusted.

    A machine without an agent is polled over SSH for its reports. One that has an agent is asked when
    that is silent, to find out why. What is said of a host wins over what is said of its groups, that
    over the ssh_config file, and that over [ssh] in the configuration.
    """


for module in (ssh_add, ssh_group, ssh_import, ssh_list, ssh_remove, ssh_trust, ssh_test, ssh_probe):
    command.add_command(module.command)
