"""collector-cli ssh probe: the script that runs on polled machines."""

from __future__ import annotations

import sys
from importlib import resources

import click

from fleetpulse.model import State


@click.command("probe", short_help="Print the script that measures a machine.")
def command() -> int:
    """Print the script that measures a machine, to be installed there as the only thing that a key may run.

    Without that, the collector sends it anew with each connection, and its key may run anything that the
    account may. With it, put the collector's public key behind this, in one line of
    ~/.ssh/authorized_keys of the account:

    \b
      restrict,command="/usr/local/bin/fleetpulse-probe" ssh-ed25519 AAAA...

    The script reads from SSH_ORIGINAL_COMMAND what the collector asks for, and does nothing else.
    After an upgrade of the collector install it again; an older one goes on working.

    \b
    Example:
      collector-cli ssh probe | ssh root@printer-3 'cat > /usr/local/bin/fleetpulse-probe && chmod 755 /usr/local/bin/fleetpulse-probe'

    Exit codes: 0 printed.
    """
    script = resources.files("collector.ssh") / "probe.sh"
    sys.stdout.buffer.write(script.read_bytes())
    sys.stdout.buffer.flush()
    return State.OK.value
