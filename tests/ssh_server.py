"""An SSH server that can misbehave at every stage, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import asyncssh
from asyncssh import SSHKey, SSHServerProcess

from collector.ssh import probe
from collector.ssh.target import Target

MODES = (
    "ok",
    "silent",
    "banner",
    "garbage",
    "flood",
    "auth",
    "refuse",
    "no-start",
    "stall",
    "huge",
    "open",
    "nologin",
)
"""How a server behaves: well, or says nothing after TCP, stops after its banner, speaks no SSH, claims to send a huge packet, stops at the login,
refuses the key, starts no command, stops in mid-output, prints without end, prints all and never closes, or prints
something else."""

_TURNS = 20
"""Of the loop at the end: a connection that was just accepted, or aborted, needs several until it is closed."""


class _Server(asyncssh.SSHServer):
    def __init__(self, owner: SshServer):
        self._owner = owner

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._owner.connections += 1
        self._conn = conn
        self._owner.open.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.open.discard(self._conn)

    async def begin_auth(self, username: str) -> bool:
        self._owner.users.append(username)
        if self._owner.mode == "auth":
            await asyncio.Event().wait()
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: SSHKey) -> bool:
        known = self._owner.client_key.get_fingerprint()
        return self._owner.mode != "refuse" and key.get_fingerprint() == known

    def connection_requested(self, *_: object) -> bool:
        return True  # a jump host


class SshServer:
    """One server on loopback. Its `mode` may be changed while it runs, but for those that are no SSH at all."""

    def __init__(
        self,
        folder: Path,
        output: Callable[[], bytes] | bytes,
        mode: str = "ok",
        addresses: Sequence[str] = ("127.0.0.1",),
    ):
        self.mode = mode
        self.addresses = addresses
        """Each is a host of its own, all with one key and on one port."""
        self.port = 0
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key_file = folder / "client.key"
        self.client_key.write_private_key(self.key_file)
        self.key_file.chmod(0o600)
        self.connections = 0
        self.sent = 0
        """Bytes of the flood."""
        self.sessions: Counter[str] = Counter()
        """Answers given, by the address."""
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.most_in_all = 0
        self.commands: list[str] = []
        self.users: list[str] = []
        self.open: set[asyncssh.SSHServerConnection] = set()
        self._output = output if callable(output) else lambda: output
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SshServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    @property
    def known_hosts_line(self) -> str:
        """For a host called web-1."""
        return f"web-1 {self.host_key.export_public_key().decode().strip()}"

    def target(self, timeout: float = 3.0, **changes: object) -> Target:
        """How the server is reached, as the host web-1."""
        fields: dict[str, object] = {
            "host": 1,
            "host_id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
            "name": "web-1",
            "address": self.addresses[0],
            "port": self.port,
            "user": "monitor",
            "keys": (self.key_file,),
            "agent": None,
            "jump": (),
            "interval": 30.0,
            "timeout": timeout,
            "options": {},
        }
        return Target(**{**fields, **changes})  # type: ignore[arg-type]

    def disconnect(self) -> None:
        """Cut every connection, as an idle timeout of the other side does."""
        self._loop.call_soon_threadsafe(lambda: [conn.abort() for conn in tuple(self.open)])

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        servers: list[asyncio.Server | asyncssh.SSHAcceptor] = []
        for address in self.addresses:
            if self.mode in ("silent", "banner", "garbage", "flood"):
                raw = await asyncio.start_server(self._misbehave, address, self.port)
                self.port = raw.sockets[0].getsockname()[1]
                servers.append(raw)
            else:
                server = await asyncssh.listen(
                    address,
                    self.port,
                    server_factory=lambda: _Server(self),
                    server_host_keys=[self.host_key],
                    process_factory=self._process,
                    encoding=None,
                )
                self.port = server.get_port()
                servers.append(server)
        self._ready.set()
        await self._ended.wait()
        for server in servers:
            server.close()
            await server.wait_closed()
        for _ in range(_TURNS):
            for conn in tuple(self.open):
                conn.abort()
            await asyncio.sleep(0)

    async def _misbehave(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.mode == "banner":
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        elif self.mode == "garbage":
            writer.write(b"220 mail.example ESMTP\r\n" * 100)
        elif self.mode == "flood":
            writer.write(b"SSH-2.0-x\r\n" + (2**31 - 1).to_bytes(4, "big"))
            while not writer.is_closing():
                writer.write(bytes(100_000))
                self.sent += 100_000
                with contextlib.suppress(OSError):
                    await writer.drain()
            return
        assert self._ended is not None
        await self._ended.wait()
        writer.transport.abort()

    async def _process(self, process: SSHServerProcess[bytes]) -> None:
        address = process.get_extra_info("sockname")[0]
        self.commands.append(process.command or "")
        await process.stdin.readexactly(len(probe.SCRIPT))
        while True:
            self.sessions[address] += 1
            self.at_once[address] += 1
            self.most_at_once[address] = max(self.most_at_once[address], self.at_once[address])
            self.most_in_all = max(self.most_in_all, self.at_once.total())
            try:
                await self._answer(process)
            finally:
                self.at_once[address] -= 1
            if self.mode == "once" or not await process.stdin.readline():
                break
        process.exit(0)

    async def _answer(self, process: SSHServerProcess[bytes]) -> None:
        output = self._output()
        if self.mode == "stall":
            process.stdout.write(output[: len(output) // 2])
            await asyncio.Event().wait()
        while self.mode == "huge":
            process.stdout.write(b"x" * 10_000 + b"\n")
            await process.stdout.drain()
        process.stdout.write(
            b"This account is currently not available.\n" if self.mode == "nologin" else output
        )


def real_output() -> bytes:
    """What the probe prints on this machine."""
    import subprocess

    done = subprocess.run(["/bin/sh", "-s"], input=probe.SCRIPT, capture_output=True, check=True, timeout=30)
    return done.stdout
