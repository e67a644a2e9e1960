"""Ports that stay free until somebody listens on them, also again after a restart."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_ports() -> tuple[int, int]:
    """A port on which nobody listens, and the one after it, as `listen` and `identity.enroll_listen` want them.

    Below those that the kernel gives to who connects: one of these may be gone before it is listened on.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # tests that run side by side share seeds
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port, port + 1
