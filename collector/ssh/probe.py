"""The script that measures a machine without an agent, and how to run it there."""

from __future__ import annotations

from importlib import resources

VERSION = 1
"""Of the script's output; `collector.ssh.parse` reads newer ones as far as it knows them."""
END = b"== end"
"""The last line of the output: whatever is still running then is not waited for."""
OUTPUT_LIMIT = 256 << 10
"""Bytes of output after which it is no use to go on reading."""


def _shrink(script: bytes) -> bytes:
    """Without comments and indentation: it travels to every host with every look at it."""
    lines = (line.strip() for line in script.splitlines()[1:])
    return b"".join(line + b"\n" for line in lines if line and not line.startswith(b"#"))


SCRIPT: bytes = _shrink((resources.files("collector.ssh") / "probe.sh").read_bytes())
"""A POSIX shell script, to be sent to what `command()` starts."""


def wish(*, with_agent: bool = False) -> bytes:
    """What to send for one more answer to a probe that has given its last."""
    return b"agent\n" if with_agent else b"again\n"


def command(*, with_agent: bool = False) -> str:
    """What to execute on the host, with `SCRIPT` on its input; any login shell understands it."""
    return "exec /bin/sh -s agent" if with_agent else "exec /bin/sh -s"
