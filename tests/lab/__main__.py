"""Start the lab, end it, or make only what all labs share: behind make lab, lab-down and lab-test."""

from __future__ import annotations

import argparse

from tests.lab.machines import NAME, Lab, make_rootfs, missing_parts, remove_leftovers


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up").add_argument("machines", type=int)
    commands.add_parser("down")
    commands.add_parser("rootfs")
    options = parser.parse_args()
    if missing := missing_parts():
        parser.exit(1, f"lab: {missing}\n")
    if options.command == "up":
        if Lab(name=NAME).machines:
            parser.exit(1, "lab: there is one already; run: make lab-down\n")
        _up(options.machines)
    elif options.command == "down":
        Lab(name=NAME).down()
        remove_leftovers()
    else:
        make_rootfs()


def _up(machines: int) -> None:
    lab = Lab(machines, name=NAME)
    lab.up()
    hub = f"ip netns exec {NAME}-hub"
    lines = [
        f"{machines} machines run until: make lab-down",
        "",
        *(f"  {machine.name:6} {machine.address}" for machine in lab.machines),
        "",
        f"key  {lab.client_key}",
        f"hub  {hub} COMMAND    ({lab.address}: for a collector, or Ansible)",
        f"ssh  {hub} {' '.join(lab.machines[0].ssh_command())}",
    ]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
