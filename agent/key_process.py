"""A new private key for the running agent, made by a process that ends with it.

So the library for keys, 10 MB, is in memory for a fraction of a second every two months.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import NamedTuple

from agent.certificate import CertificateError, pem_blocks

TIMEOUT = 20.0  # seconds; it takes a quarter of one
_REQUEST = "CERTIFICATE REQUEST"
# Without -P, a folder "agent" where the agent was started would be taken for ours.
_COMMAND = (sys.executable, "-P", "-m", "agent.keys")


class KeyProcessError(Exception):
    """No key was made; the text says why."""


class NewKey(NamedTuple):
    """The key as PKCS #8 in PEM, and the certificate request as PKCS #10 in DER."""

    key: bytes
    csr: bytes


async def make_key() -> NewKey:
    """Raises KeyProcessError. Cancelling it ends the process."""
    try:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise KeyProcessError(f"cannot start {sys.executable}: {error.strerror}") from None
    try:
        async with asyncio.timeout(TIMEOUT):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise KeyProcessError(f"it took more than {TIMEOUT:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise KeyProcessError(f"it ended with {process.returncode}: {''.join(last)[:500]}")
    return parse(output)


def parse(output: bytes) -> NewKey:
    """What `agent.keys` printed. Raises KeyProcessError."""
    try:
        [csr] = pem_blocks(output, _REQUEST)
    except (CertificateError, ValueError):
        raise KeyProcessError("it printed something else than one certificate request") from None
    return NewKey(output.partition(f"-----BEGIN {_REQUEST}".encode())[0], csr)
