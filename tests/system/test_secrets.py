"""Tokens, private keys and passwords stay where they belong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mariadb_server import MariadbServer, database_of
from tests.processes import running_site, wait_until

PASSWORD = "correct horse battery staple"


@contextmanager
def watched_command_lines() -> Iterator[set[str]]:
    """Every command line that `ps` could show meanwhile."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit():
                    try:
                        seen.add(
                            (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        )
                    except OSError:
                        continue  # it has ended
            over.wait(0.03)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def key_lines(pem: str) -> set[str]:
    """The lines of private keys, each long enough to be nothing else."""
    found: set[str] = set()
    for block in pem.split("PRIVATE KEY-----")[1::2]:
        found |= {line for line in block.splitlines() if len(line) > 30}
    return found


def stored_text(server: MariadbServer, database: str) -> str:
    """All that is in the database."""
    tables = [table for (table,) in server.query("SHOW TABLES", database=database)]
    rows = [row for table in tables for row in server.query(f"SELECT * FROM {table}", database=database)]
    return "\n".join(
        field.decode("utf-8", "replace") if isinstance(field, bytes) else str(field)
        for row in rows
        for field in row
    )


def test_no_secret_is_stored_logged_or_shown(mariadb: MariadbServer, tmp_path: Path) -> None:
    """Through a real enrolment, renewals, a refusal and every command that has to do with secrets."""
    url = mariadb.fresh_database()
    database = database_of(url)
    mariadb.account(mariadb.tcp_url(database))
    mariadb.query(f"ALTER USER fleet@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
    password_file = tmp_path / "password"
    password_file.touch(0o600)
    password_file.write_text(f"{PASSWORD}\n")
    with running_site(mariadb.tcp_url(database).replace("root@", "fleet@"), tmp_path, url) as site:
        site.upgrade()
        site.settings["FLEETPULSE_DATABASE_PASSWORD_FILE"] = str(password_file)
        secrets = {PASSWORD}
        said: list[str] = []
        with watched_command_lines() as command_lines:
            collector = site.collector(
                upgrade=False, tls="on", identity_host_lifetime="15s", log_level="debug"
            )
            token, unused = site.token("--host", "one"), site.token()
            secrets |= {token, unused}
            enrolled = site.enroll("one", token=token)
            own = site.folder / "one" / "host.pem"
            first = own.read_bytes()
            secrets |= key_lines(first.decode())
            agent = site.agent("one", log_level="debug", interval="200ms")
            refused = site.enroll("two", token=token, check=False)
            assert refused.returncode != 0
            said += [enrolled.stdout, enrolled.stderr, refused.stdout, refused.stderr]

            def ask(*arguments: str) -> None:
                done = site.cli(*arguments)
                said.extend((done.stdout, done.stderr))

            for arguments in (["token", "list"], ["token", "list", "--json"], ["doctor", "--json"]):
                ask(*arguments)
            wait_until(lambda: own.read_bytes() != first, seconds=90, what="a renewal because it is time")
            second = own.read_bytes()
            secrets |= key_lines(second.decode())
            ask("ca", "rotate")
            for arguments in (["ca", "show"], ["ca", "show", "--json"], ["show", "one", "--json"]):
                ask(*arguments)
            wait_until(
                lambda: own.read_bytes() != second, seconds=90, what="a renewal because the CA is another"
            )
            secrets |= key_lines(own.read_text())
            ask("events", "--json")
            ask("revoke", "one", "--yes")
            secrets |= key_lines((site.identity_dir / "ca.key").read_text())
            secrets |= key_lines((site.identity_dir / "server.pem").read_text())
            agent.wait_for_log("revoked")
            assert agent.stop() == 0
            assert collector.stop() == 0
        said += [collector.log, agent.log, stored_text(mariadb, database), *command_lines]

    assert any("agent.keys" in line for line in command_lines), "the process that makes keys was seen"
    assert len(secrets) >= 3 + 5 * 2
    everything = "\n".join(said)
    assert "certificate renewed" in everything
    for secret in secrets:
        assert secret not in everything
    # Not even the part of a token behind its prefix.
    assert token.partition("_")[2] not in everything
